"""Keeps the biases of converted graphs within the 32 bits that runtimes of ONNX give them."""

import operator
from typing import Any

import torch
from torch import fx

from ..steps import steps_for_biases
from .nodes import CONVS, LINEAR, is_call, is_dequantize

__all__ = ["fit_biases"]


def fit_biases(module: fx.GraphModule) -> None:
    """Gives int8 weights larger steps, in place, if their bias does not fit."""
    for node in module.graph.nodes:
        if not is_call(node, CONVS | LINEAR) or len(node.args) < 3 or not isinstance(node.args[2], fx.Node):
            continue
        input, weight, bias = node.args[:3]
        if not (is_dequantize(input) and is_dequantize(weight) and bias.op == "get_attr"):
            continue
        values, steps = (_tensor(module, argument) for argument in weight.args[:2])
        if steps is None or values is None or steps.dim() == 0:
            continue
        larger = steps_for_biases(steps, _tensor(module, bias).detach(), float(input.args[1]))
        if not torch.equal(larger, steps):
            ratio = (steps / larger).reshape(-1, *[1] * (values.dim() - 1))
            values.copy_((values * ratio).round())
            steps.copy_(larger)


def _tensor(module: fx.GraphModule, node: Any) -> Any:
    is_attribute = isinstance(node, fx.Node) and node.op == "get_attr"
    return operator.attrgetter(str(node.target))(module) if is_attribute else None
