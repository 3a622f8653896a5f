"""Questions about single modules, and changes to them in place."""

import copy
from itertools import chain
from typing import TypeVar

from torch import nn

from .structure import flatten

__all__ = ["copy_module", "has_hooks", "make_padding_numeric", "numeric_padding", "replace_module_", "tensor_versions"]

_Module = TypeVar("_Module", bound=nn.Module)


def copy_module(module: _Module) -> _Module:
    """A deep copy of a module that may hold results of its ``forward`` as attributes, which are detached.

    ``copy.deepcopy`` raises an error for tensors with gradients: features that a ``forward`` keeps, or weights that a
    hook computes.
    """
    values = [value for part in module.modules() for value in vars(part).values()]
    tensors = [tensor for tensor in flatten(values)[0] if not tensor.is_leaf]
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in tensors})


def has_hooks(module: nn.Module) -> bool:
    """Whether ``module`` has hooks, which fusing or folding would drop or call with other values."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def make_padding_numeric(model: nn.Module) -> None:
    """Replaces ``padding="same"`` and ``"valid"`` of convolutions by numbers, in place, if numbers can express it."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            module.padding = numeric_padding(module) or module.padding


def numeric_padding(conv: nn.modules.conv._ConvNd) -> tuple[int, ...] | None:
    """The padding of each dimension as a number; ``None`` if the two sides of a dimension differ."""
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)


def replace_module_(module: nn.Module, other: nn.Module) -> None:
    """Gives ``module`` the class and state of ``other``, in eval mode: every reference to it sees the change."""
    other.eval()
    module.__class__ = other.__class__
    module.__dict__ = other.__dict__


def tensor_versions(model: nn.Module) -> list[tuple[str, int, int]]:
    """The path, identity and version of each parameter and buffer, which differ after a write or a replacement."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    return [(path, id(tensor), 0 if tensor.is_inference() else tensor._version) for path, tensor in tensors]
