"""The class that a module computes like, and the removal of parametrizations."""

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["float_class_of", "remove_parametrizations"]


def float_class_of(module: nn.Module) -> type[nn.Module]:
    """The class whose ``forward`` a module runs; for a quantizable twin its float layer, which computes the same."""
    if "forward" in vars(module):  # a forward that was set on the instance could compute anything
        return nn.Module
    float_class: type[nn.Module] = vars(type(module)).get("float_class", type(module))
    return float_class


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
