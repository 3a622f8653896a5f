"""Weights that are computed before each call: by hooks, as pruning does, or by norms that change while they train."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .modules import copy_module

__all__ = [
    "compute_hooked_weights",
    "computes_weight",
    "hooked_paths",
    "list_removals",
    "list_removals_of_changing_norms",
]

#: The hooks of ``torch.nn.utils``, with the function that removes each.
_REMOVALS: dict[type, tuple[str, Any]] = {
    prune.BasePruningMethod: ("torch.nn.utils.prune.remove", prune.remove),
    SpectralNorm: ("torch.nn.utils.remove_spectral_norm", remove_spectral_norm),
    WeightNorm: ("torch.nn.utils.remove_weight_norm", remove_weight_norm),
}


def compute_hooked_weights(model: nn.Module) -> None:
    """Gives modules with hooks that compute weights ordinary parameters with the current values, in place."""
    for _, module, hook in list(_hooks(model)):
        _, remove = _removal(hook)
        remove(module, _name(hook))


def computes_weight(hook: object) -> bool:
    """Whether a forward pre-hook does nothing but compute a weight."""
    return isinstance(hook, tuple(_REMOVALS))


def hooked_paths(model: nn.Module) -> list[str]:
    """The paths of modules with such hooks."""
    return list(dict.fromkeys(path or "model" for path, _, _ in _hooks(model)))


def list_removals(model: nn.Module) -> list[str]:
    """The calls that remove all such hooks from ``model``."""
    return [f"{_removal(hook)[0]}({_expression(path)}, {_name(hook)!r})" for path, _, hook in _hooks(model)]


def list_removals_of_changing_norms(model: nn.Module) -> list[str]:
    """The calls that remove norms of weights, by hooks or by parametrizations, whose buffers change in training."""
    removals = [
        f"{_removal(hook)[0]}({_expression(path)}, {_name(hook)!r})"
        for path, _, hook in _hooks(model)
        if isinstance(hook, SpectralNorm)
    ]
    for path, module in model.named_modules():
        for name in module.parametrizations if parametrize.is_parametrized(module) else ():
            if _changes_buffers(module, name):
                removals.append(f"torch.nn.utils.parametrize.remove_parametrizations({_expression(path)}, {name!r})")
    return removals


def _hooks(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if computes_weight(hook):
                yield path, module, hook


def _removal(hook: Any) -> tuple[str, Any]:
    return next(removal for cls, removal in _REMOVALS.items() if isinstance(hook, cls))


def _name(hook: Any) -> str:
    """The name of the parameter that a hook computes."""
    return str(hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name)


def _expression(path: str) -> str:
    return f"model.get_submodule({path!r})" if path else "model"


@torch.no_grad()
def _changes_buffers(module: nn.Module, name: str) -> bool:
    copied = copy_module(module).train()
    parametrizations: Any = copied.parametrizations
    buffers = list(parametrizations[name].buffers())
    versions = [buffer._version for buffer in buffers]
    getattr(copied, name)
    return versions != [buffer._version for buffer in buffers]
