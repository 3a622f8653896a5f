"""The function or class that is named on a command line, out of a file or a module."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

__all__ = ["factory", "named_module"]


@contextmanager
def factory(reference: str) -> Iterator[Callable[..., nn.Module]]:
    """The function that ``FILE.py:FUNCTION`` or ``package.module:FUNCTION`` names, while the context is open.

    Errors: those of :func:`named_module`.
    """
    with named_module(reference) as (module, name):
        function: Callable[..., nn.Module] = getattr(module, name)
        yield function


@contextmanager
def named_module(reference: str) -> Iterator[tuple[ModuleType, str]]:
    """The module of ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``, and the name after the colon.

    A file in a folder with an ``__init__.py`` is imported as part of that package. While the context is open, the
    folder that holds the file or its package is the first in which modules are looked for; at its end ``sys.path`` and
    the modules of that name are as they were.

    Errors: ``ValueError`` for another form, for what cannot be imported, or where it has no such function;
    ``FileNotFoundError`` for no file.
    """
    source, separator, name = reference.rpartition(":")
    if not separator or not source or not name.isidentifier():
        raise ValueError(f"the model must be FILE.py:FUNCTION or package.module:FUNCTION, got {reference!r}")
    if not source.endswith(".py"):
        yield _checked(_imported(source, source), name, source), name
        return
    path = Path(source).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"the model must be in a file that exists, got {source}")
    root, module = _place(path)
    with _modules_of(module.partition(".")[0], root):
        yield _checked(_imported(module, source), name, source), name


def _place(path: Path) -> tuple[Path, str]:
    """The folder above the package of a file, and the name of its module from there."""
    root, parts = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    return root, ".".join(parts)


@contextmanager
def _modules_of(top: str, root: Path) -> Iterator[None]:
    """Within, the module or package ``top`` is that in ``root``, also where another one of this name is loaded."""
    loaded = sys.modules.get(top)
    if loaded is not None and root in Path(getattr(loaded, "__file__", None) or "/").resolve().parents:
        yield  # it is itself, and other modules know it
        return

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == top]

    others = {name: sys.modules.pop(name) for name in ours()}
    entry = str(root)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
        for name in ours():
            del sys.modules[name]
        sys.modules.update(others)


def _imported(module: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever the code there raises
        raise ValueError(f"{source} cannot be imported: {type(error).__name__}: {error}") from error


def _checked(module: ModuleType, name: str, source: str) -> ModuleType:
    """The module, which has a function or class of that name."""
    if callable(getattr(module, name, None)):
        return module
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    names = ", ".join(key for key in own if callable(getattr(module, key)) and not key.startswith("_"))
    raise ValueError(f"{source} has no function {name!r}, it has: {names or 'none'}")
