"""Floats that a ``forward`` computes from anything but int8 tensors, and that must be rounded for int8 modules."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..report_row import Int8Support
from .operations import Kind, Kinds
from .support import int8_support

__all__ = ["float_dtype", "values_to_round"]

#: Methods that turn numbers of another type into floating point, if an argument says so.
_CASTS = {"to", "type"}


def values_to_round(module: nn.Module, node: fx.Node, kinds: Kinds) -> list[fx.Node]:
    """The parameters, buffers and casts of masks and indices that ``node`` gives to an int8 module, or returns."""
    runs_in_float = node.op == "call_module" and int8_support(module.get_submodule(str(node.target))) in (
        Int8Support.FLOAT_FALLBACK,
        Int8Support.UNKNOWN,
    )
    if runs_in_float or node.op not in ("call_module", "output"):
        return []
    rounded = [Kind.CONSTANT, Kind.OTHER] if node.op == "call_module" else [Kind.CONSTANT]
    return [value for value in node.all_input_nodes if kinds.get(value) in rounded and _is_float(module, value)]


def _is_float(module: nn.Module, node: fx.Node) -> bool:
    """Whether a value is computed from floating-point parameters or buffers, or by a cast to float32."""
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(module)
        return isinstance(value, Tensor) and value.is_floating_point()
    if node.op not in ("call_function", "call_method"):
        return False
    return _is_cast(node) or any(_is_float(module, value) for value in node.all_input_nodes)


def _is_cast(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target in _CASTS:
        arguments = [*node.args[1:], *node.kwargs.values()]
        return any(a is torch.float32 or getattr(a, "target", None) is float_dtype for a in arguments)
    return node.op == "call_method" and node.target == "float"


def float_dtype(tensor: Any) -> torch.dtype:
    """The type that a tensor has in the float model."""
    dtype: torch.dtype = tensor.dtype
    return torch.float32 if tensor.is_quantized else dtype
