"""Quantized convolutions and linear layers of exported graphs as oneDNN's operators on plain integer tensors."""

from typing import Any

import torch
from torch import Tensor, fx

from ...quantized.pt2e.constants import erase_unused_ops
from ...quantized.pt2e.nodes import (
    CONVS,
    LINEAR,
    arguments,
    conv_geometry,
    is_call,
    is_dequantize,
    is_quantize,
    is_zero_padding,
)
from .aliasing import positions
from .fusion import replace_call
from .int8_kernels import dequantize, quantize, quantize_affine, quantized_conv_sum, quantized_max_pool
from .packing import float_scales, pack_quantized_conv, pack_quantized_linear
from .pixels import is_mean
from .post_ops import find_post_op
from .scaling import constant_of

__all__ = ["quantize_layers"]

_aten = torch.ops.aten
_ADD, _RELU = _aten.add.Tensor, _aten.relu.default
_CONV_POST_OPS = {"relu", "hardtanh", "hardswish", "swish"}
_CONV1D_POST_OPS = {"relu"}
_LINEAR_POST_OPS = _CONV_POST_OPS | {"leaky_relu", "tanh", "gelu"}
#: Operators that only move or select values.
_MOVES = {
    _aten.flatten.using_ints,
    _aten.permute.default,
    _aten.reshape.default,
    _aten.slice.Tensor,
    _aten.squeeze.dim,
    _aten.transpose.int,
    _aten.unsqueeze.default,
}
#: Operators that commute with rounding, which torch has for few sizes of integers only.
_MAXIMA = {_aten.max_pool2d.default, _aten.max_pool1d.default, _aten.max_pool3d.default}


def quantize_layers(module: fx.GraphModule) -> None:
    """Replaces dequantize, layer and quantize nodes by operators that take and return integers, in place."""
    graph = module.graph
    operators = _operators()
    for node in list(graph.nodes):
        if is_quantize(node):
            _move_integers(graph, node)
    layers = [node for node in graph.nodes if is_call(node, CONVS | LINEAR) and _is_quantized(module, node)]
    for node in layers:
        _replace_layer(graph, node, operators)
    for node in list(graph.nodes):
        _fuse_post_op(graph, node, operators)
    for node in list(graph.nodes):
        if is_call(node, {_ADD}):
            _fuse_sum(graph, node, operators)
    for node in layers:
        if node.target in operators.values():
            _fuse_quantize(graph, node)
    for node in list(graph.nodes):
        if is_mean(node):
            _average_integers(graph, node)
    for node in list(graph.nodes):
        if is_call(node, {_aten.addcmul.default}):
            _round_affine(module, node)
    for node in list(graph.nodes):
        if is_quantize(node):
            replace_call(node, quantize, node.args)
        elif _is_per_tensor(node):
            replace_call(node, dequantize, node.args[:3])
    erase_unused_ops(graph)
    module.recompile()


def _is_per_tensor(node: fx.Node) -> bool:
    """Whether a node dequantizes an activation."""
    return is_dequantize(node) and str(node.target).startswith("quantized_decomposed.dequantize_per_tensor.")


def _operators() -> dict[Any, Any]:
    """The quantized operator for each operator of a layer."""
    return {
        _aten.conv1d.default: torch.ops.onednn.qconv1d_pointwise.default,
        _aten.conv2d.default: torch.ops.onednn.qconv2d_pointwise.default,
        _aten.conv3d.default: torch.ops.onednn.qconv3d_pointwise.default,
        _aten.linear.default: torch.ops.onednn.qlinear_pointwise.default,
    }


def _is_quantized(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a layer has an input of uint8, and a constant weight of int8 with a scale for each filter."""
    input, weight, bias, *_ = arguments(node)
    if not is_dequantize(input) or not is_dequantize(weight) or weight.target == input.target:
        return False
    if not str(weight.target).startswith("quantized_decomposed.dequantize_per_channel."):
        return False
    values, _, zero_points, axis = weight.args[:4]
    zeros = constant_of(module, zero_points)
    is_constant = constant_of(module, values) is not None and (bias is None or constant_of(module, bias) is not None)
    return is_constant and zeros is not None and not zeros.any() and axis == 0 and input.args[5] == torch.uint8


def _replace_layer(graph: fx.Graph, node: fx.Node, operators: dict[Any, Any]) -> None:
    input, weight, bias, *geometry = arguments(node)
    source, scale, zero_point = input.args[:3]
    values, weight_scales, weight_zero_points = weight.args[:3]
    node.meta["kernel"] = [int(size) for size in (weight.meta["val"].shape[0], *weight.meta["val"].shape[2:])]
    with graph.inserting_before(node):
        scales = graph.call_function(float_scales, (weight_scales,))
        if node.target in LINEAR:
            packed = graph.call_function(pack_quantized_linear, (values,))
        else:
            geometry = [*conv_geometry(node), geometry[-1]]
            packed = graph.call_function(pack_quantized_conv, (values, scales, scale, zero_point, *geometry))
    head = (source, scale, zero_point, packed, scales, weight_zero_points, bias)
    replace_call(node, operators[node.target], (*head, *geometry, 1.0, 0, torch.float32, "none", [], ""))


def _fuse_post_op(graph: fx.Graph, node: fx.Node, operators: dict[Any, Any]) -> None:
    post_op = find_post_op(node)
    layer: Any = node.args[0] if node.args else None
    if post_op is None or not is_call(layer, set(operators.values())) or len(layer.users) != 1:
        return
    supported = {
        operators[_aten.linear.default]: _LINEAR_POST_OPS,
        operators[_aten.conv1d.default]: _CONV1D_POST_OPS,
        operators[_aten.conv3d.default]: set[str](),
    }.get(layer.target, _CONV_POST_OPS)
    if layer.args[-3] == "none" and post_op.name in supported:
        layer.args = (*layer.args[:-3], post_op.name, list(post_op.scalars), post_op.algorithm)
        node.replace_all_uses_with(layer)
        graph.erase_node(node)


def _fuse_sum(graph: fx.Graph, node: fx.Node, operators: dict[Any, Any]) -> None:
    """Makes a sum with integers, a ReLU after it and the rounding of the result part of a convolution."""
    if any(not isinstance(term, fx.Node) for term in node.args[:2]) or arguments(node)[2] != 1:
        return
    order = positions(graph)
    terms: list[Any] = sorted(node.args[:2], key=order.__getitem__)
    for other, layer in (terms, terms[::-1]):
        is_conv = is_call(layer, {operators[_aten.conv2d.default]}) and layer.args[-3] == "none"
        if not is_conv or len(layer.users) != 1 or not is_dequantize(other) or len(node.users) == 0:
            continue
        follower = next(iter(node.users))
        has_relu = len(node.users) == 1 and is_call(follower, {_RELU})
        last = follower if has_relu else node
        steps = _common_quantization(last)
        if steps is None or other.args[5] != torch.uint8:
            continue
        scale, zero_point = steps
        quantized, other_scale, other_zero_point = other.args[:3]
        post_op = "relu" if has_relu else "none"
        rest = (scale, zero_point, layer.meta["kernel"], quantized, other_scale, other_zero_point, post_op, False)
        replace_call(last, quantized_conv_sum, (*layer.args[:11], *rest))
        _remove_quantization(graph, last)
        if last is not node:
            graph.erase_node(node)
        graph.erase_node(layer)
        return


def _fuse_quantize(graph: fx.Graph, layer: fx.Node) -> None:
    """Lets a layer return integers if all of its readers round its output in the same way."""
    steps = _common_quantization(layer)
    if steps is not None:
        layer.args = (*layer.args[:-6], *steps, torch.uint8, *layer.args[-3:])
        _remove_quantization(graph, layer)


def _common_quantization(node: fx.Node) -> tuple[float, int] | None:
    """The scale and zero point with which all readers of a node round it to uint8."""
    users = list(node.users)
    if not users or not all(is_quantize(user) and user.args[3:6] == (0, 255, torch.uint8) for user in users):
        return None
    steps = {user.args[1:3] for user in users}
    return steps.pop() if len(steps) == 1 else None  # type: ignore[return-value]  # numbers


def _remove_quantization(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        node.meta = {**node.meta, "val": user.meta["val"]}
        user.replace_all_uses_with(node)
        graph.erase_node(user)


def _round_affine(module: fx.GraphModule, node: fx.Node) -> None:
    """Makes a sum and a product for each channel, and a ReLU after them, part of the rounding of the result."""
    offset, input, factor = node.args[:3]
    follower: Any = next(iter(node.users), None)
    has_relu = len(node.users) == 1 and is_call(follower, {_RELU})
    last = follower if has_relu else node
    steps = _common_quantization(last)
    is_broadcast = not isinstance(input, fx.Node) or input.meta["val"].shape != node.meta["val"].shape
    if steps is None or node.kwargs or is_broadcast:
        return
    if not all(_is_per_channel(module, each, node) for each in (offset, factor)):
        return
    scale, zero_point = steps
    low = zero_point if has_relu else 0
    replace_call(last, quantize_affine, (input, offset, factor, scale, zero_point, low, 255, torch.uint8))
    _remove_quantization(module.graph, last)
    if last is not node:
        module.graph.erase_node(node)


def _is_per_channel(module: fx.GraphModule, node: object, output: fx.Node) -> bool:
    """Whether a node reads a constant with a number for each channel of ``output``."""
    constant, shape = constant_of(module, node), output.meta["val"].shape
    return constant is not None and constant.shape == (1, *shape[1:2], *[1] * len(shape[2:])) and len(shape) > 1


def _average_integers(graph: fx.Graph, mean: fx.Node) -> None:
    """Lets the mean of each channel read integers."""
    dequantized: Any = mean.args[0]
    if not _is_per_tensor(dequantized) or len(dequantized.users) > 1:
        return
    quantized, scale, zero_point = dequantized.args[:3]
    with graph.inserting_before(mean):
        average = graph.call_function(_aten.mean.dim, (quantized, [2, 3], True), {"dtype": torch.float32})
        output = graph.call_function(dequantize, (average, scale, zero_point))
    average.meta, output.meta = dict(mean.meta), dict(mean.meta)
    mean.replace_all_uses_with(output)
    graph.erase_node(mean)


def _move_integers(graph: fx.Graph, node: fx.Node) -> None:
    """Applies an operator that moves values to integers if its inputs and its output are rounded in the same way."""
    move: Any = node.args[0]
    if is_dequantize(move) and move.args[1:] == node.args[1:]:
        node.replace_all_uses_with(move.args[0])
        graph.erase_node(node)
        return
    if is_call(move, _MAXIMA) and is_dequantize(move.args[0]) and move.args[0].args[1:] == node.args[1:]:
        if not _pool_integers(graph, move, node):
            _round_after_maximum(graph, move)
        return
    is_move = is_call(move, _MOVES) or is_zero_padding(move)
    if is_call(move, {_aten.cat.default}):
        is_move = all(isinstance(term, fx.Node) for term in move.args[0])
    sources = [source for source in move.all_input_nodes if isinstance(source.meta.get("val"), Tensor)]
    if not is_move or len(move.users) != 1 or not sources:
        return
    if all(is_dequantize(source) and source.args[1:] == node.args[1:] for source in sources):
        for source in sources:
            move.replace_input_with(source, source.args[0])
        if is_zero_padding(move):
            replace_call(move, _aten.constant_pad_nd.default, (*move.args[:2], node.args[2]))
        move.meta = {**move.meta, "val": node.meta["val"]}
        node.replace_all_uses_with(move)
        graph.erase_node(node)


def _pool_integers(graph: fx.Graph, pool: fx.Node, node: fx.Node) -> bool:
    """Replaces a pool between dequantize and quantize nodes by one of uint8, if there is one."""
    dequantized: Any = pool.args[0]
    if pool.target is not _aten.max_pool2d.default or len(pool.users) != 1 or node.args[5] != torch.uint8:
        return False
    _, kernel, stride, *rest = arguments(pool)
    kernel, stride, padding, dilation = ([*v] * (3 - len(v)) for v in (kernel, stride or kernel, *rest[:2]))
    if min(kernel) == 1 or {*dilation} != {1} or rest[-1] or pool.meta["val"].dim() != 4:
        return False
    replace_call(pool, quantized_max_pool, (dequantized.args[0], kernel, stride, padding))
    pool.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(pool)
    graph.erase_node(node)
    return True


def _round_after_maximum(graph: fx.Graph, pool: fx.Node) -> None:
    """Lets a pool read what was rounded before, because it rounds to the same integers afterwards."""
    dequantized: Any = pool.args[0]
    quantized = dequantized.args[0]
    if is_quantize(quantized) and len(quantized.users) == 1 and len(dequantized.users) == 1:
        pool.replace_input_with(dequantized, quantized.args[0])
        graph.erase_node(dequantized)
        graph.erase_node(quantized)
