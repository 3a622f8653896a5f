"""Convolutions and linear layers of exported graphs as operators of oneDNN, with what follows them inside."""

import math
from typing import Any

import torch
from torch import Tensor, fx

from ...quantized.pt2e.constants import erase_unused_ops
from ...quantized.pt2e.nodes import CONVS, LINEAR, arguments, conv_geometry, is_call
from ...quantized.pt2e.writes import is_write
from .aliasing import positions
from .kernels import conv1d, conv_sum, linear_sum
from .packing import pack_conv, pack_linear
from .pixels import flatten_pixels
from .post_ops import find_post_op
from .scaling import constant_of

__all__ = ["fuse", "replace_call"]

_aten = torch.ops.aten
_mkldnn = torch.ops.mkldnn
_ADD, _PERMUTE, _RELU = _aten.add.Tensor, _aten.permute.default, _aten.relu.default
_FLATTEN = _aten.flatten.using_ints
#: Multiplications below which oneDNN's linear layers take longer to start than a matrix product takes.
_MIN_PRODUCTS = 2**18


def fuse(module: fx.GraphModule) -> None:
    """Replaces convolutions and linear layers with constant weights in float32, in place."""
    flatten_pixels(module)
    for node in list(module.graph.nodes):
        if is_call(node, CONVS | LINEAR) and _has_float_constants(module, node):
            (_replace_linear if node.target in LINEAR else _replace_conv)(module, node)
    for node in list(module.graph.nodes):
        _fuse_post_op(module.graph, node)
    for node in list(module.graph.nodes):
        if is_call(node, {_ADD}):
            _fuse_sum(module.graph, node)
    erase_unused_ops(module.graph)
    module.recompile()


def _has_float_constants(module: fx.GraphModule, node: fx.Node) -> bool:
    input, weight, bias, *_ = arguments(node)
    if is_call(weight, {_FLATTEN}):
        weight = weight.args[0]
    tensors = [constant_of(module, weight), *([] if bias is None else [constant_of(module, bias)])]
    if any(tensor is None or tensor.dtype != torch.float32 for tensor in tensors):
        return False
    value = input.meta["val"]
    dims = 0 if node.target in LINEAR else weight.meta["val"].dim()
    return value.dtype == torch.float32 and value.device.type == "cpu" and (not dims or value.dim() == dims)


def replace_call(node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    """Lets a node call something else, in place."""
    node.target, node.args, node.kwargs = target, args, {}


def _replace_conv(module: fx.GraphModule, node: fx.Node) -> None:
    input, weight, bias, *_, groups = arguments(node)
    stride, padding, dilation = conv_geometry(node)
    dims = len(stride)
    if dims == 1:
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    with module.graph.inserting_before(node):
        packed = module.graph.call_function(pack_conv, (weight, padding, stride, dilation, groups))
    target = conv1d if dims == 1 else _mkldnn._convolution_pointwise.default
    replace_call(node, target, (input, packed, bias, padding, stride, dilation, groups, "none", [], ""))
    node.meta["kernel"] = [int(size) for size in (weight.meta["val"].shape[0], *weight.meta["val"].shape[2:])]


def _replace_linear(module: fx.GraphModule, node: fx.Node) -> None:
    input, weight, bias = arguments(node)
    if _products(input, weight) < _MIN_PRODUCTS:
        return
    with module.graph.inserting_before(node):
        packed = module.graph.call_function(pack_linear, (weight,))
    replace_call(node, _mkldnn._linear_pointwise.default, (input, packed, bias, "none", [], ""))
    node.meta["features"] = int(weight.meta["val"].shape[0])


def _products(input: fx.Node, weight: fx.Node) -> int:
    """The number of multiplications of a linear layer for the example."""
    return math.prod(input.meta["shape"][:-1]) * int(weight.meta["val"].numel())


def _is_layer(node: Any, targets: set[Any]) -> bool:
    """Whether a node is an operator of oneDNN that has no post-operation yet, and one user."""
    return is_call(node, targets) and len(node.users) == 1 and node.args[-3] == "none"


def _fuse_post_op(graph: fx.Graph, node: fx.Node) -> None:
    post_op = find_post_op(node)
    layers = {_mkldnn._convolution_pointwise.default, _mkldnn._linear_pointwise.default, conv1d}
    layer = node.args[0] if node.args else None
    if post_op is None or not isinstance(layer, fx.Node) or not _is_layer(layer, layers):
        return
    layer.args = (*layer.args[:-3], post_op.name, list(post_op.scalars), post_op.algorithm)
    node.replace_all_uses_with(layer)
    graph.erase_node(node)


def _fuse_sum(graph: fx.Graph, node: fx.Node) -> None:
    """Makes a sum, and a ReLU after it, part of the layer that computes the last of its terms."""
    order = positions(graph)
    if any(not isinstance(term, fx.Node) for term in node.args[:2]) or arguments(node)[2] != 1:
        return
    terms: list[Any] = sorted(node.args[:2], key=order.__getitem__)
    values = [term.meta["val"] for term in terms]  # a size may be a term
    if len({*terms}) == 1 or not all(isinstance(v, Tensor) and v.dtype == torch.float32 for v in values):
        return
    for other, layer in (terms, terms[::-1]):
        permutation = None
        if is_call(layer, {_PERMUTE}) and _is_layer(layer.args[0], {_mkldnn._linear_pointwise.default}):
            if len(layer.users) != 1:
                continue
            rank = len(layer.args[1])
            layer, permutation = layer.args[0], [dim % rank for dim in layer.args[1]]
        is_conv = _is_layer(layer, {_mkldnn._convolution_pointwise.default})
        is_linear = _is_layer(layer, {_mkldnn._linear_pointwise.default})
        if (not is_conv and not is_linear) or other.meta["val"].dim() != node.meta["val"].dim():
            continue
        if any(is_write(between) for between in graph.nodes if order[layer] < order[between] < order[node]):
            continue  # it may change what the layer reads
        if is_conv:
            _replace_conv_sum(graph, node, layer, other)
        else:
            _replace_linear_sum(graph, node, layer, other, permutation)
        return


def _replace_conv_sum(graph: fx.Graph, node: fx.Node, layer: fx.Node, other: fx.Node) -> None:
    kernel = layer.meta["kernel"]
    follower = next(iter(node.users))
    has_relu = len(node.users) == 1 and is_call(follower, {_RELU})
    input, weight, bias, padding, stride, dilation, groups = layer.args[:7]
    post_op = "relu" if has_relu else None
    args = (input, other, weight, bias, padding, stride, dilation, groups, kernel, post_op, False)
    replace_call(node, conv_sum, args)
    if has_relu:
        follower.replace_all_uses_with(node)
        graph.erase_node(follower)
    graph.erase_node(layer)


def _replace_linear_sum(graph: fx.Graph, node: fx.Node, layer: fx.Node, other: fx.Node, permutation: Any) -> None:
    value = other.meta["val"]
    with graph.inserting_before(node):
        if permutation is not None:
            inverse = [permutation.index(dim) for dim in range(len(permutation))]
            other = graph.call_function(_PERMUTE, (other, inverse))
            other.meta["val"] = value.permute(inverse)
        total = graph.call_function(linear_sum, (layer.args[0], other, *layer.args[1:3], layer.meta["features"]))
        total.meta["val"] = layer.meta["val"]
        output = total if permutation is None else graph.call_function(_PERMUTE, (total, permutation))
        output.meta = dict(node.meta)
    permuted = next(iter(layer.users))
    node.replace_all_uses_with(output)
    graph.erase_node(node)
    if permutation is not None:
        graph.erase_node(permuted)
    graph.erase_node(layer)
