"""The modules that ``exclude`` names, which stay in float."""

import difflib
import fnmatch
from collections.abc import Callable, Container, Iterable

from torch import nn

from .._utils.model_checks import call_predicate
from .._utils.scaling import CONV_AND_LINEAR

__all__ = ["Exclude", "excluding_path", "find_excluded"]

#: A path or a pattern of paths, a class, or a function of the path and the module.
Exclude = str | type[nn.Module] | Callable[[str, nn.Module], bool]


def find_excluded(model: nn.Module, exclude: Iterable[Exclude]) -> dict[str, str]:
    """The outermost modules that ``exclude`` names, by path, each with the entry that names it as text.

    Args:
        model: in float; it is never excluded as a whole.
        exclude: as in :func:`quantize`.

    Errors: ``TypeError`` for anything but a collection of entries; ``ValueError`` for an entry that matches nothing, or
    if no convolution or linear layer is left for int8.
    """
    if isinstance(exclude, (str, type, nn.Module)) or not isinstance(exclude, Iterable):
        remedy = f": pass [{exclude!r}]" if isinstance(exclude, str) else ""
        raise TypeError(f"exclude must be a list of paths, patterns, classes and functions, got {exclude!r}{remedy}")
    modules = [(path, module) for path, module in model.named_modules(remove_duplicate=False) if path]
    excluded: dict[str, str] = {}
    for entry in exclude:
        matches = {module for path, module in modules if _matches(entry, path, module)}
        paths = [path for path, module in modules if module in matches]  # with all places of a shared module
        if not paths:
            raise ValueError(
                f"exclude must name modules of the model, {_named(entry)} matches none; {_hint(entry, modules)}"
            )
        for path in paths:
            excluded.setdefault(path, _named(entry))
    layers = [path for path, module in modules if isinstance(module, CONV_AND_LINEAR)]
    if layers and all(excluding_path(path, excluded) for path in layers):
        raise ValueError("exclude must leave a convolution or linear layer for int8, it names all of them")
    return {path: by for path, by in excluded.items() if excluding_path(path.rpartition(".")[0], excluded) is None}


def excluding_path(path: str, excluded: Container[str]) -> str | None:
    """The path in ``excluded`` that is ``path`` or above it; ``None`` if there is none."""
    while path and path not in excluded:
        path = path.rpartition(".")[0]
    return path or None


def _matches(entry: Exclude, path: str, module: nn.Module) -> bool:
    if isinstance(entry, str):
        return path == entry or fnmatch.fnmatchcase(path, entry)
    if isinstance(entry, type):
        return isinstance(module, entry)
    if not callable(entry) or isinstance(entry, nn.Module):
        raise TypeError(f"exclude must hold paths, patterns, classes and functions, got {entry!r}")
    return call_predicate("each function in exclude", entry, path, module)


def _named(entry: Exclude) -> str:
    return repr(entry) if isinstance(entry, str) else getattr(entry, "__name__", repr(entry))


def _hint(entry: Exclude, modules: list[tuple[str, nn.Module]]) -> str:
    """The names that are closest to an entry without a match."""
    if isinstance(entry, str) and entry in {type(module).__name__ for _, module in modules}:
        return f"it is the name of a class: pass the class itself, {entry}, without quotes"
    if isinstance(entry, str):
        names = {path: path for path, _ in modules} | {path.rpartition(".")[2]: path for path, _ in reversed(modules)}
        close = [names[name] for name in difflib.get_close_matches(entry.strip("*."), names, cutoff=0.5)]
    elif isinstance(entry, type):
        close = difflib.get_close_matches(entry.__name__, {type(module).__name__ for _, module in modules})
    else:
        close = []
    if close:
        return f"the closest are {', '.join(dict.fromkeys(close))}"
    children = [path for path, _ in modules if "." not in path]
    return f"it has {', '.join(children[:5])}{' and others' if len(children) > 5 else ''}"
