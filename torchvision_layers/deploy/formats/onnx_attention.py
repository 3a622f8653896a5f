"""Attention in ONNX, whose exporter takes queries, keys and values of four dimensions only."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["make_four_dimensional"]

_aten = torch.ops.aten


def make_four_dimensional(graph: fx.Graph) -> None:
    """Gives queries, keys and values one dimension in front of heads, tokens and features, in place.

    Windows of an image have two, and tokens without heads none. Attention stays as it is if it repeats keys or values
    for several queries, or has a mask for each window.
    """
    for node in list(graph.nodes):
        if node.target is _aten.scaled_dot_product_attention.default:
            _reshape(graph, node)


def _reshape(graph: fx.Graph, node: fx.Node) -> None:
    args: Any = node.args
    query, key, value, *others = args
    dims = {_val(tensor).dim() for tensor in (query, key, value)}
    mask = others[0] if others else node.kwargs.get("attn_mask")
    rank = max(dims)
    if dims == {4} or len(dims) > 1 or rank < 3 or _val(query).shape[-1] != _val(value).shape[-1]:
        return
    fronts = {tuple(map(str, _val(tensor).shape[:-3])) for tensor in (query, key, value)}
    if len(fronts) > 1 or (mask is not None and _val(mask).dim() > 3):
        return

    def call(operator: Callable[..., Tensor], *args: Any) -> fx.Node:
        result = graph.call_function(operator, args)
        with _val(query).fake_mode:
            result.meta["val"] = operator(*(_val(arg) if isinstance(arg, fx.Node) else arg for arg in args))
        return result

    def four(tensor: fx.Node) -> fx.Node:
        if rank == 3:
            return call(_aten.unsqueeze.default, tensor, 0)
        return call(_aten.flatten.using_ints, tensor, 0, rank - 4)

    with graph.inserting_before(node):
        inputs = [four(tensor) for tensor in (query, key, value)]
    with graph.inserting_after(node):
        restored = graph.call_function(_aten.reshape_as.default, (node, query))
    restored.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(restored, lambda user: user is not restored)
    node.args = (*inputs, *others)
    with _val(query).fake_mode:
        node.meta["val"] = _val(inputs[0]).clone()


def _val(node: Any) -> Any:
    return node.meta["val"]
