"""Replacement of single modules, in place, so that every reference to them sees the new one."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..._utils.modules import replace_module_

__all__ = ["float_class_of", "fold_itself", "remove_parametrizations"]


def float_class_of(module: nn.Module) -> type[nn.Module]:
    """The class whose ``forward`` a module runs; for a quantizable twin its float layer, which computes the same."""
    if "forward" in vars(module):  # a forward that was set on the instance could compute anything
        return nn.Module
    float_class: type[nn.Module] = vars(type(module)).get("float_class", type(module))
    return float_class


def fold_itself(module: nn.Module, path: str) -> bool:
    """Replaces a module by the result of its method ``folded()``; returns whether it has one for its ``forward``."""
    folded_classes = set[type[nn.Module]]()
    while type(module) not in folded_classes and _has_folded(module):
        folded_classes.add(type(module))
        folded = module.folded()  # type: ignore[operator]
        if not isinstance(folded, nn.Module):
            raise TypeError(f"folded() of {path} must return a module, got {folded!r}")
        replace_module_(module, folded)
    return bool(folded_classes)


def _has_folded(module: nn.Module) -> bool:
    """Whether ``folded`` is a method, not a child, of the class that defines ``forward`` or of a subclass of it."""
    classes = type(module).__mro__
    if "forward" in vars(module) or not callable(getattr(type(module), "folded", None)):
        return False
    folded_level, forward_level = (
        next(i for i, c in enumerate(classes) if name in vars(c)) for name in ("folded", "forward")
    )
    return folded_level <= forward_level


def remove_parametrizations(model: nn.Module) -> None:
    """Gives parametrized modules plain parameters with the current values, in place.

    torch's own function changes the class, which a copy shares with its original, and the parameter, which other
    modules may share.
    """
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        with torch.no_grad():
            values = {name: getattr(module, name).clone() for name in parametrizations}
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, value in values.items():
            if next(parametrizations[name].parameters(recurse=False), None) is None:
                module.register_buffer(name, value)
            else:
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
