"""Padding and weights of convolutions and linear layers."""

import operator

import torch
from torch import fx

from ..pairs import overflows
from .constants import constant_nodes
from .nodes import CONVS, EINSUM, LINEAR, MATMULS, NAMED_PADDING, WEIGHTED, arguments, is_call, is_dequantize, operands

__all__ = ["constant_products", "dynamic_weights", "has_overflowing_products", "make_padding_numeric"]

_pad = torch.ops.aten.constant_pad_nd.default


def make_padding_numeric(module: fx.GraphModule) -> None:
    """Replaces ``"same"`` and ``"valid"`` padding of convolutions by numbers, and by a pad if the sides differ."""
    graph = module.graph
    nodes = [node for node in graph.nodes if is_call(node, NAMED_PADDING)]
    for node in nodes:
        input, weight, bias, stride, padding, dilation, groups = arguments(node)
        kernel = weight.meta["val"].shape[2:]
        total = [0] * len(kernel)
        if padding == "same":
            dilations = dilation * len(kernel) if len(dilation) == 1 else dilation
            total = [d * (size - 1) for d, size in zip(dilations, kernel, strict=True)]
        sides = [size // 2 for size in total]
        if any(size % 2 for size in total):
            extra = [n for size in reversed(total) for n in (0, size % 2)]
            with graph.inserting_before(node):
                padded = graph.call_function(_pad, (input, extra))
            value = input.meta["val"]
            spatial = value.dim() - len(total)
            sizes = [*value.shape[:spatial], *(n + m % 2 for n, m in zip(value.shape[spatial:], total, strict=True))]
            # Padding a symbolic tensor would restrict the sizes of the graph.
            padded.meta = {**node.meta, "val": value.new_empty(sizes)}
            input = padded
        node.target = NAMED_PADDING[node.target]
        node.args = (input, weight, bias, stride, sides, dilation, groups)
    if nodes:
        module.recompile()


def dynamic_weights(graph: fx.Graph) -> list[fx.Node]:
    """Convolutions and linear layers whose weight depends on the input of the model."""
    constants = constant_nodes(graph)
    return [node for node in graph.nodes if is_call(node, WEIGHTED) and node.args[1] not in constants]


def constant_products(graph: fx.Graph) -> list[fx.Node]:
    """Products of a tensor and a constant: linear layers in another spelling."""
    constants = constant_nodes(graph)
    return [
        node
        for node in graph.nodes
        if is_call(node, MATMULS | EINSUM) and node not in constants and not constants.isdisjoint(operands(node))
    ]


def has_overflowing_products(module: fx.GraphModule) -> bool:
    """Whether sums of two products with int8 weights can overflow in onnxruntime on x86 without VNNI."""
    weights = {node.args[1] for node in module.graph.nodes if is_call(node, CONVS | LINEAR)}
    values = {weight.args[0] for weight in weights if isinstance(weight, fx.Node) and is_dequantize(weight)}
    names = [str(value.target) for value in values if isinstance(value, fx.Node) and value.op == "get_attr"]
    return any(overflows(operator.attrgetter(name)(module), any_order=False) for name in names)
