"""A model or a layer becomes one file that needs torch only."""

from pathlib import Path

from .._utils.atomic import atomic_path
from .._utils.importing import named_module
from ._collecting import Collection, collect
from ._header import header, origin
from ._imports import by_kind, import_lines
from ._naming import Key, name_all
from ._ordering import ordered
from ._rewriting import rewritten
from ._sources import OURS, Definition, External, Sources
from ._twinning import Twinning, twins

__all__ = ["source", "write"]

_QUANTIZABLE_MODEL = Definition(f"{OURS}.standalone._twins", "QuantizableModel")
_DOORS = {"tnn": f"{OURS}.nn", "enn": f"{OURS}.experimental.nn"}


def write(reference: str, path: str | Path, *, quantizable: bool = False, force: bool = False) -> Path:
    """Writes the file of :func:`source`; returns its path.

    Args:
        reference: as in :func:`source`.
        path: the file to write, which is whole or not there.
        quantizable: as in :func:`source`.
        force: replaces a file that exists. Default: ``False``.

    Errors: those of :func:`source`; ``FileExistsError`` for a file that exists, ``FileNotFoundError`` for no folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the output must be in a folder that exists, got {path}")
    if path.suffix != ".py":
        raise ValueError(f"the output must end in .py, got {path}")
    text = source(reference, quantizable=quantizable)
    if path.exists() and not force:
        raise FileExistsError(f"the output must be a new file, or be forced to replace one, got {path}")
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def source(reference: str, *, quantizable: bool = False) -> str:
    """The text of a file that holds a model or layer and all code that it uses, on torch and the standard library.

    Args:
        reference: ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``, of a function that makes a model, or a class.
        quantizable: puts the quantizable twin of each layer in its place, with ``fuse_model`` and what else
            ``torch.ao.quantization`` needs. Default: ``False``.

    Errors: ``FileNotFoundError`` for no such file; ``ValueError`` for no such function, a name whose source cannot be
    found, what needs more than torch, or for ``quantizable`` a layer without a twin.
    """
    with named_module(reference) as (runtime, name):
        sources = Sources(runtime)
        found = sources.resolve(sources.module(runtime.__name__), (name,))
        if found is None or isinstance(found[0], External):
            raise ValueError(f"the model must be written in Python beside the package or in it, got {reference!r}")
        root, twinning = found[0], twins() if quantizable else Twinning()
        if not quantizable and root.module.startswith(f"{OURS}.quantized."):
            raise ValueError(f"a twin must be written with quantizable, got {root.name} without")
        if quantizable and root in twinning.as_they_are:
            raise ValueError(f"a quantizable layer must need a twin, {root.name} needs none")
        twinning.check(root)
        root = twinning.twins.get(root, root)
        roots = [_QUANTIZABLE_MODEL, root] if quantizable else [root]
        collection = collect(sources, twinning, roots)
        docstring = "" if root.is_ours else sources.module(root.module).docstring
        return "\n".join(
            [
                *header(root, origin(reference, runtime), docstring, quantizable),
                "",
                *_code(collection, roots),
                "",
            ]
        )


def _code(collection: Collection, roots: list[Definition]) -> list[str]:
    names = name_all(collection, roots[-1])
    units = ordered(collection, roots)
    origins = [use.origin for unit in units for use in unit.uses if isinstance(use.origin, External)]
    is_future = any(unit.module.is_future for unit in units)
    lines = import_lines(dict.fromkeys(origins), names, is_future)
    public = ", ".join(f'"{name}"' for name in sorted((names[root] for root in roots), key=by_kind))
    lines += ["", f"__all__ = [{public}]"]
    is_block, module = False, ""
    for unit in units:
        text = rewritten(unit, names, lambda door, name: _name_of(collection, names, door, name))
        was_block, is_block = is_block, _is_block(text)
        if unit.module.name != module:
            module = unit.module.name
            lines += ["", "", f"# From {module}", *([""] if not is_block else ["", ""])]
        else:
            lines += ["", ""] if was_block or is_block else [""]
        lines += text
    return lines


def _is_block(text: list[str]) -> bool:
    first = next(line for line in text if not line.startswith("#"))
    return first.startswith(("def ", "class ", "@", "async "))


def _name_of(collection: Collection, names: dict[Key, str], door: str, name: str) -> str | None:
    """The name in the file of what a door of the package calls so."""
    module = collection.sources.module(_DOORS[door])
    if name not in module.imports:
        return None
    resolved = collection.sources.resolve(module, (name,))
    origin = resolved[0] if resolved else None
    return names.get(origin) if isinstance(origin, Definition) else None
