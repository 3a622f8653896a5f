"""Keeps the biases of converted graphs within the 32 bits that runtimes of ONNX give them."""

import operator
from typing import Any

from torch import fx

from ..steps import fitted_weights
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
        fitted = fitted_weights(values, steps, _tensor(module, bias), float(input.args[1]))
        if fitted is not None:
            values.copy_(fitted[0])
            steps.copy_(fitted[1])


def _tensor(module: fx.GraphModule, node: Any) -> Any:
    is_attribute = isinstance(node, fx.Node) and node.op == "get_attr"
    return operator.attrgetter(str(node.target))(module) if is_attribute else None
