"""Modules that become other ones in place, for whoever holds them."""

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["become", "fold_itself", "kind", "settle_parameters"]


def kind(module: nn.Module) -> type[nn.Module]:
    """The class whose ``forward`` a module runs; of a twin the float layer, which gives the same."""
    if "forward" in vars(module):  # set on the instance: nothing is known of it
        return nn.Module
    own: type[nn.Module] = vars(type(module)).get("float_class", type(module))
    return own


def become(module: nn.Module, other: nn.Module) -> None:
    """Makes ``module`` what ``other`` is, in eval mode, at all places at once."""
    other.eval()
    module.__class__ = other.__class__
    module.__dict__ = other.__dict__


def fold_itself(module: nn.Module, path: str) -> bool:
    """Makes a module what its method ``folded()`` gives, if it has one for its ``forward``; whether it did."""
    seen = set[type[nn.Module]]()
    while type(module) not in seen and _has_folded(module):
        seen.add(type(module))
        folded = module.folded()  # type: ignore[operator]
        if not isinstance(folded, nn.Module):
            raise TypeError(f"folded() of {path} must give a module, got {folded!r}")
        become(module, folded)
    return bool(seen)


def _has_folded(module: nn.Module) -> bool:
    """Whether ``folded`` is a method, not a child, and of the same class as ``forward`` or of a subclass of that."""
    classes = type(module).__mro__
    if "forward" in vars(module) or not callable(getattr(type(module), "folded", None)):
        return False
    of_folded, of_forward = (
        next(i for i, c in enumerate(classes) if name in vars(c)) for name in ("folded", "forward")
    )
    return of_folded <= of_forward


def settle_parameters(model: nn.Module) -> None:
    """Gives parametrized modules plain parameters, with the values of the moment, in place.

    torch's own way changes the class, which a copy shares with its original, and the parameter that others may share.
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
