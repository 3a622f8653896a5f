"""Operators of a lowered graph that write their result into a tensor that no later operator reads."""

from typing import Any

import torch
from torch import fx

from ...quantized.pt2e.constants import constant_nodes
from ...quantized.pt2e.writes import is_write
from .aliasing import alias_sets, aliased_inputs, positions
from .int8_kernels import quantized_conv_sum
from .kernels import conv_sum, scale_channels

__all__ = ["write_in_place"]

_aten = torch.ops.aten
_UNARY = {
    _aten.relu.default: _aten.relu_.default,
    _aten.sigmoid.default: _aten.sigmoid_.default,
    _aten.tanh.default: _aten.tanh_.default,
    _aten.hardswish.default: _aten.hardswish_.default,
    _aten.hardsigmoid.default: _aten.hardsigmoid_.default,
    _aten.silu.default: _aten.silu_.default,
    _aten.hardtanh.default: _aten.hardtanh_.default,
    _aten.leaky_relu.default: _aten.leaky_relu_.default,
    _aten.clamp.default: _aten.clamp_.default,
}


def write_in_place(graph: fx.Graph) -> None:
    """Lets sums, activations and products with a number per channel overwrite an input that is not needed again."""
    temporaries = _Temporaries(graph)
    for node in list(graph.nodes):
        target: Any = node.target
        if target is conv_sum:
            other: Any = node.args[1]
            # In another memory format, the sum would keep that format.
            if other.meta.get("is_channels_last") and temporaries.is_dead(other, node):
                node.args = (*node.args[:-1], True)
        elif target is quantized_conv_sum:
            if temporaries.is_dead(node.args[14], node):
                node.args = (*node.args[:-1], True)
        elif target in _UNARY:
            if temporaries.is_dead(node.args[0], node):
                node.target = _UNARY[target]
        elif target is _aten.mul.Tensor:
            for value, scale in (node.args[:2], node.args[1::-1]):
                if _scales_channels(node, value, scale) and temporaries.is_dead(value, node):
                    node.target, node.args, node.kwargs = scale_channels, (value, scale), {}
                    break


def _scales_channels(node: fx.Node, value: object, scale: object) -> bool:
    if not isinstance(value, fx.Node) or not isinstance(scale, fx.Node) or "shape" not in scale.meta:
        return False
    shape, other = value.meta.get("shape"), scale.meta["shape"]
    is_scale = shape == node.meta.get("shape") and shape is not None and shape[:2] == other[:2] and {*other[2:]} == {1}
    return is_scale and scale.meta["val"].dtype == value.meta["val"].dtype


class _Temporaries:
    """The tensors that a graph makes, and who reads them."""

    def __init__(self, graph: fx.Graph) -> None:
        self._order = positions(graph)
        sets = alias_sets(graph)
        written = {input for node in graph.nodes if is_write(node) for input in node.all_input_nodes}
        constants = constant_nodes(graph)
        self._own = {
            node
            for node, members in sets.items()
            if node.op == "call_function" and members == {node} and not {node} & (written | constants)
        }
        assert not any(aliased_inputs(node) for node in self._own)

    def is_dead(self, value: object, node: fx.Node) -> bool:
        """Whether ``node`` may overwrite one of its inputs: nothing else has its memory or reads it later.

        The input must have the dtype of the result, and be no other argument of the node.
        """
        if not isinstance(value, fx.Node) or value not in self._own:
            return False
        if value.meta["val"].dtype != node.meta["val"].dtype:
            return False
        is_last = all(self._order[user] <= self._order[node] for user in value.users)
        return is_last and sum(argument is value for argument in node.args) == 1
