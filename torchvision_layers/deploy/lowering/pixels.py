"""Layers on single pixels, such as squeeze-excitation, as linear layers on rows."""

from typing import Any

import torch
from torch import fx

from ...quantized.pt2e.constants import erase_unused_ops
from ...quantized.pt2e.nodes import CONVS, arguments, is_call
from .post_ops import find_post_op
from .scaling import constant_of

__all__ = ["flatten_pixels", "is_mean"]

_aten = torch.ops.aten
_MEAN, _POOL = _aten.mean.dim, _aten.adaptive_avg_pool2d.default


def flatten_pixels(module: fx.GraphModule) -> None:
    """Replaces convolutions of single pixels, and the activations between them, by operators on matrices, in place.

    oneDNN takes several times as long to start a convolution as such a layer takes.
    """
    graph = module.graph
    rows: dict[fx.Node, fx.Node] = {}  # for each image of single pixels, the same values as a matrix
    for node in list(graph.nodes):
        if is_mean(node):
            with graph.inserting_after(node):
                rows[node] = graph.call_function(_MEAN, (node.args[0], [2, 3]))
            rows[node].meta = _flat_meta(node)
        elif not node.args or node.args[0] not in rows:
            continue
        elif is_call(node, {_aten.flatten.using_ints}) and arguments(node)[1:] in ([1, -1], [1, 3]):
            node.replace_all_uses_with(rows[node.args[0]])
        elif _is_pixel_conv(module, node):
            input, weight, bias, *_ = arguments(node)
            with graph.inserting_before(node):
                matrix = graph.call_function(_aten.flatten.using_ints, (weight, 1))
                matrix.meta["val"] = weight.meta["val"].flatten(1)
            _replace(graph, node, rows, _aten.linear.default, (rows[input], matrix, bias))
        elif find_post_op(node) is not None:
            _replace(graph, node, rows, node.target, (rows[node.args[0]], *node.args[1:]))
    erase_unused_ops(graph)
    # Each mean is computed once.
    for image, matrix in rows.items():
        if is_call(matrix, {_MEAN}) and image.users and matrix.users:
            matrix.target, matrix.args = _aten.flatten.using_ints, (image, 1)


def _replace(graph: fx.Graph, node: fx.Node, rows: dict[fx.Node, fx.Node], target: Any, args: tuple[Any, ...]) -> None:
    channels = int(node.meta["val"].shape[1])
    with graph.inserting_before(node):
        matrix = graph.call_function(target, args, node.kwargs)
        image = graph.call_function(_aten.view.default, (matrix, [-1, channels, 1, 1]))
    matrix.meta, image.meta = _flat_meta(node), dict(node.meta)
    rows[image] = matrix
    node.replace_all_uses_with(image)
    graph.erase_node(node)


def _flat_meta(node: fx.Node) -> dict[str, Any]:
    return {"val": node.meta["val"].flatten(1), "shape": node.meta["shape"][:2]}


def is_mean(node: fx.Node) -> bool:
    """Whether a node computes the mean of each channel, as an image of a single pixel."""
    rank = node.meta["val"].dim() if "shape" in node.meta else 0
    if is_call(node, {_POOL}):
        return rank == 4 and {*arguments(node)[1]} == {1}
    if not is_call(node, {_MEAN}):
        return False
    _, dims, keeps_dims, dtype = arguments(node)
    return rank == 4 and keeps_dims and {dim % rank for dim in dims or ()} == {2, 3} and dtype is None


def _is_pixel_conv(module: fx.GraphModule, node: fx.Node) -> bool:
    if not is_call(node, CONVS):
        return False
    _, weight, _, _, padding, _, groups = arguments(node)
    is_small = {*weight.meta["val"].shape[2:]} == {1} and {*padding} == {0} and groups == 1
    return is_small and constant_of(module, weight) is not None
