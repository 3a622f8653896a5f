"""A stable layer as a change to a checkout of torchvision."""

import difflib
import inspect
from dataclasses import dataclass
from pathlib import Path

from .._utils.atomic import atomic_path
from ._checkout import DOCS, DOOR, TESTS, open_checkout
from ._edits import Import, bound_names, with_entry, with_import, with_page_entry
from ._placing import place, stable_layer
from ._pull_request import pull_request
from ._repository import record_of, spec_of
from ._testing import code_for, with_test

__all__ = ["Change", "propose"]


@dataclass(frozen=True)
class Change:
    """What a layer changes in a checkout: nothing is written before ``write`` is called."""

    layer: str
    checkout: Path
    #: Text of each file before (empty where it is new) and after.
    files: dict[str, tuple[str, str]]
    #: Text of the pull request, in Markdown.
    pull_request: str

    def diff(self) -> str:
        """The change as a unified diff, which ``git apply`` takes."""
        parts = []
        for file, (before, after) in self.files.items():
            head = f"diff --git a/{file} b/{file}\n" + ("" if before else "new file mode 100644\n")
            lines = difflib.unified_diff(
                before.splitlines(keepends=True),
                after.splitlines(keepends=True),
                f"a/{file}" if before else "/dev/null",
                f"b/{file}",
            )
            parts.append(head + "".join(lines))
        return "".join(parts)

    def write(self) -> None:
        """Writes the files into the checkout; each is whole or as before, and all are as before after an error.

        Errors: ``ValueError`` where the checkout is no longer as it was, ``OSError`` for files that cannot be written.
        """
        checkout = open_checkout(self.checkout)
        for file, (before, _) in self.files.items():
            if checkout.text(file) != before:
                raise ValueError(f"{file} must be as it was when the change was made")
        written: list[str] = []
        try:
            for file, (_, after) in self.files.items():
                _put(self.checkout / file, after)
                written.append(file)
        except BaseException:
            for file in written:
                _put(self.checkout / file, self.files[file][0])
            raise


def propose(layer: str, checkout: str | Path, repository: str | Path | None = None) -> Change:
    """Makes the change of a stable layer to a checkout of torchvision, and writes nothing.

    A class that torchvision has by that name is replaced where it stands, any other layer gets a file of its own.

    Args:
        layer: a name of ``torchvision_layers.nn``.
        checkout: top of a clean working tree of torchvision, in the layout of 0.29.
        repository: clone of this package's repository, whose specifications and records make the tests and the
            checklist. Default: ``None``, the clone that the package is imported from.

    Errors: ``ValueError`` for another name, a layer that torchvision has as it is, a checkout that is none, has another
    layout or holds changes, or no repository; ``ImportError`` where what the tests of this package need is missing.
    """
    cls = stable_layer(layer)
    tree = open_checkout(checkout)
    record, spec = record_of(layer, repository), spec_of(layer, repository)
    file, text = place(cls, tree)
    before = {name: tree.text(name) for name in (file, DOOR, DOCS, TESTS)}
    is_replacement = bool(before[file])
    after = {file: text, **_entries(layer, file, before, is_replacement)}
    code = code_for(spec, _title(layer, before[TESTS]))
    after[TESTS] = with_test(before[TESTS], code)
    meanings = {
        file: "the class in the place of the one before, with its helpers" if is_replacement else "the layer",
        DOOR: "import and `__all__`",
        DOCS: "the page lists it",
        TESTS: "its tests",
    }
    files = {name: (before[name], new) for name, new in after.items() if new != before[name]}
    about = pull_request(
        layer,
        inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        {name: meanings[name] for name in files},
        record,
        code.samples,
        code.refusals,
        is_replacement,
        tree.models_with(layer),
    )
    return Change(layer, tree.path, files, about)


def _entries(layer: str, file: str, before: dict[str, str], is_replacement: bool) -> dict[str, str]:
    """The door and the page with the layer in it.

    Errors: ``ValueError`` where they are written otherwise than in torchvision 0.29.
    """
    door = before[DOOR]
    if not is_replacement:
        module = "." + Path(file).stem
        try:
            door = with_entry(with_import(door, Import(module, layer)), layer)
        except ValueError as error:
            raise ValueError(f"{DOOR} must have the layout of torchvision 0.29: {error}") from error
    try:
        docs = with_page_entry(before[DOCS], layer)
    except ValueError as error:
        raise ValueError(f"{DOCS} must have the layout of torchvision 0.29: {error}") from error
    return {DOOR: door, DOCS: docs}


def _title(layer: str, tests: str) -> str:
    """A name for the test class that no other has."""
    taken = bound_names(tests)
    for title in (f"Test{layer}", f"Test{layer}Layer"):
        if title not in taken:
            return title
    raise ValueError(f"{TESTS} must not have tests of {layer} yet, it has Test{layer} and Test{layer}Layer")


def _put(path: Path, text: str) -> None:
    """Writes a file; a new one that is to be empty again goes."""
    if not text:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if path.exists():
            temporary.chmod(path.stat().st_mode)
