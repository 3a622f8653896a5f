"""Modules that return another module which computes the same, by a method ``folded()``."""

from collections.abc import Callable, Container

from torch import nn

from .modules import copy_module, has_hooks, replace_module_
from .plain.model import find_entered
from .scaling import CONV_AND_LINEAR

__all__ = ["fold_itself", "has_folded", "join_branches"]


def fold_itself(module: nn.Module, path: str) -> bool:
    """Replaces a module by the result of its method ``folded()``; returns whether it has one for its ``forward``."""
    folded_classes = set[type[nn.Module]]()
    while type(module) not in folded_classes and has_folded(module):
        form = _folded(module, path)
        if form is None:
            break
        folded_classes.add(type(module))
        replace_module_(module, form)
    return bool(folded_classes)


def join_branches(
    model: nn.Module, fixed: Container[str], needs_form: Callable[[nn.Module], bool] = lambda module: False
) -> nn.Module:
    """A copy of ``model`` in eval mode whose parallel convolutions are joined, or ``model`` if it has none.

    A layer is replaced by its ``folded()`` if that has fewer convolutions and linear layers, or if ``needs_form`` says
    so. Layers without such a form, layers with hooks, layers whose parts a ``forward`` above them uses, and those with
    a module inside whose path is in ``fixed`` stay.
    """
    forms: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        parts = [*module.named_modules(prefix=path)]
        if not has_folded(module) or any(has_hooks(part) for _, part in parts):
            continue
        is_needed = needs_form(module)
        if not (is_needed or _count(module) > 1) or any(name in fixed for name, part in parts if part is not module):
            continue
        form = _folded(copy_module(module).eval(), path or "model")
        if form is not None and (is_needed or _count(form) < _count(module)):
            forms[path] = form
    entered = find_entered(model) if forms else set()  # takes a while
    forms = {path: form for path, form in forms.items() if model.get_submodule(path) not in entered}
    if not forms:
        return model
    joined = copy_module(model).eval()
    places = [joined.get_submodule(path) for path in forms]  # before one of them replaces another inside it
    for place, form in zip(places, forms.values(), strict=True):
        replace_module_(place, form)
    return joined


def _folded(module: nn.Module, path: str) -> nn.Module | None:
    """The result of ``folded()``; ``None`` if it raises ``ValueError``, because these settings have no such form."""
    try:
        folded = module.folded()  # type: ignore[operator]
    except ValueError:
        return None
    if not isinstance(folded, nn.Module):
        raise TypeError(f"folded() of {path} must return a module, got {folded!r}")
    return folded


def has_folded(module: nn.Module) -> bool:
    """Whether ``folded`` is a method, not a child, of the class that defines ``forward`` or of a subclass of it."""
    classes = type(module).__mro__
    if "forward" in vars(module) or not callable(getattr(type(module), "folded", None)):
        return False
    folded_level, forward_level = (
        next(i for i, c in enumerate(classes) if name in vars(c)) for name in ("folded", "forward")
    )
    return folded_level <= forward_level


def _count(module: nn.Module) -> int:
    return sum(isinstance(part, CONV_AND_LINEAR) for part in module.modules())
