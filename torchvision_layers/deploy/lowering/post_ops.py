"""Activations that oneDNN computes inside of a convolution or linear layer."""

from typing import NamedTuple

import torch
from torch import fx

from ...quantized.pt2e.nodes import arguments

__all__ = ["PostOp", "find_post_op"]

_aten = torch.ops.aten


class PostOp(NamedTuple):
    """An activation under oneDNN's name, with its numbers and the name of its formula."""

    name: str = "none"
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


_WITHOUT_NUMBERS = {
    _aten.relu.default: "relu",
    _aten.sigmoid.default: "sigmoid",
    _aten.tanh.default: "tanh",
    _aten.hardswish.default: "hardswish",
    _aten.hardsigmoid.default: "hardsigmoid",
    _aten.silu.default: "swish",
}


def find_post_op(node: fx.Node) -> PostOp | None:
    """The post-operation that computes the same as a node; ``None`` if there is none."""
    if node.op != "call_function":
        return None
    if node.target in _WITHOUT_NUMBERS:
        return PostOp(_WITHOUT_NUMBERS[node.target])
    if node.target is _aten.relu6.default:
        return PostOp("hardtanh", (0.0, 6.0))
    if node.target is _aten.gelu.default:
        approximation = node.kwargs.get("approximate", "none")
        return PostOp("gelu", (), str(node.args[1] if len(node.args) > 1 else approximation))
    if node.target in (_aten.hardtanh.default, _aten.clamp.default):
        _, low, high = arguments(node)
        if all(isinstance(limit, (int, float)) for limit in (low, high)) and low <= high:
            return PostOp("hardtanh", (float(low), float(high)))
    if node.target is _aten.leaky_relu.default:
        _, slope = arguments(node)
        if isinstance(slope, (int, float)):
            return PostOp("leaky_relu", (float(slope),))
    if node.target is _aten.clamp_min.default and arguments(node)[1] == 0:
        return PostOp("relu")
    return None
