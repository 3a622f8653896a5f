"""Imports a function or class named on the command line from a file or a module."""

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
    """Context in which ``FILE.py:FUNCTION`` or ``package.module:FUNCTION`` is imported; yields the function.

    Errors: as in :func:`named_module`.
    """
    with named_module(reference) as (module, name):
        function: Callable[..., nn.Module] = getattr(module, name)
        yield function


@contextmanager
def named_module(reference: str) -> Iterator[tuple[ModuleType, str]]:
    """Context in which the module of ``FILE.py:FUNCTION`` or ``package.module:FUNCTION`` is imported.

    Yields the module and the name after the colon. A file in a folder with an ``__init__.py`` is imported as part of
    that package. Inside the context, the folder of the file or of its package comes first in ``sys.path``; afterwards
    ``sys.path`` and the modules of that name are restored.

    Errors: ``ValueError`` for another form, a module that cannot be imported or has no such function;
    ``FileNotFoundError`` if there is no such file.
    """
    source, separator, name = reference.rpartition(":")
    if not separator or not source or not name.isidentifier():
        raise ValueError(f"the model must be FILE.py:FUNCTION or package.module:FUNCTION, got {reference!r}")
    if not source.endswith(".py"):
        yield _checked(_imported(source, source), name, source), name
        return
    path = Path(source).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"the model must be in an existing file, got {source}")
    root, module = _qualified_name(path)
    with _modules_of(module.partition(".")[0], root):
        yield _checked(_imported(module, source), name, source), name


def _qualified_name(path: Path) -> tuple[Path, str]:
    """The folder that contains the package of a file, and the qualified name of its module."""
    root, parts = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    return root, ".".join(parts)


@contextmanager
def _modules_of(top: str, root: Path) -> Iterator[None]:
    """Context in which ``import top`` imports from ``root``, even if another module of this name is loaded."""
    loaded = sys.modules.get(top)
    if loaded is not None and root in Path(getattr(loaded, "__file__", None) or "/").resolve().parents:
        yield  # other modules may refer to the loaded one
        return

    def loaded_names() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == top]

    others = {name: sys.modules.pop(name) for name in loaded_names()}
    entry = str(root)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
        for name in loaded_names():
            del sys.modules[name]
        sys.modules.update(others)


def _imported(module: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # imported code may raise anything
        raise ValueError(f"{source} cannot be imported: {type(error).__name__}: {error}") from error


def _checked(module: ModuleType, name: str, source: str) -> ModuleType:
    """Returns ``module`` if it has a function or class called ``name``."""
    if callable(getattr(module, name, None)):
        return module
    own_names = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    names = ", ".join(key for key in own_names if callable(getattr(module, key)) and not key.startswith("_"))
    raise ValueError(f"{source} has no function {name!r}; its functions are: {names or 'none'}")
