"""Operators of a lowered graph that write their result into a tensor that no later operator reads."""

from typing import Any

import torch
from torch import fx

from ...quantized.pt2e.constants import constant_nodes
from ...quantized.pt2e.nodes import arguments
from ...quantized.pt2e.writes import is_write
from .aliasing import alias_sets, aliased_inputs, positions
from .int8_kernels import quantized_conv_sum
from .kernels import add_in_place, conv_sum, multiply_in_place

__all__ = ["write_in_place"]

_aten = torch.ops.aten
#: Operators on single values that torch does not mark as such.
_POINTWISE: set[object] = {_aten.hardswish.default, _aten.leaky_relu.default}
_BINARY: dict[object, Any] = {_aten.add.Tensor: add_in_place, _aten.mul.Tensor: multiply_in_place}


def write_in_place(graph: fx.Graph) -> None:
    """Lets sums, products and operators on single values overwrite an input that is not needed again."""
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
        elif _is_pointwise(node):
            if temporaries.is_dead(node.args[0], node):
                node.target = _writing_operator(target) or target
        elif _is_sum_or_product(node):
            for value, other in (node.args[:2], node.args[1::-1]):
                if _has_layout(node, value) and temporaries.is_dead(value, node):
                    node.target, node.args, node.kwargs = _BINARY[target], (value, other), {}
                    break


def _is_pointwise(node: fx.Node) -> bool:
    """Whether a node computes each value from one value of its first input, and from numbers."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or node.all_input_nodes != [*node.args[:1]]:
        return False
    return torch.Tag.pointwise in target.tags or target in _POINTWISE


def _is_sum_or_product(node: fx.Node) -> bool:
    """Whether a node adds or multiplies two tensors, without a factor."""
    is_tensor = ["shape" in input.meta for input in node.all_input_nodes]
    return node.target in _BINARY and arguments(node)[2:] in ([], [1]) and is_tensor == [True, True]


def _writing_operator(target: torch._ops.OpOverload) -> Any:
    """The operator that writes its result into its first input; ``None`` if there is none."""
    packet = getattr(_aten, f"{target.overloadpacket.__name__}_", None) if target.namespace == "aten" else None
    overload = target._overloadname
    return getattr(packet, overload) if packet is not None and overload in packet.overloads() else None


def _has_layout(node: fx.Node, input: object) -> bool:
    """Whether the result has the shape and the memory format of an input."""
    if not isinstance(input, fx.Node) or input.meta.get("shape", ()) != node.meta.get("shape"):
        return False
    formats = [n.meta.get("is_channels_last") for n in (input, node)]
    return formats == [True, True] or (input is node.args[0] and formats[0] == formats[1])


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
