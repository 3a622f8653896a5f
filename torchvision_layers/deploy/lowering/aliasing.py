"""Which nodes of an exported graph may share memory."""

import operator

import torch
from torch import Tensor, fx

from ...quantized.pt2e.writes import is_write
from .kernels import to_channels_last

__all__ = ["alias_sets", "aliased_inputs", "positions", "written_nodes"]

_aten = torch.ops.aten

#: Operators without a kernel of their own, whose results are always new tensors. Others may return their input.
_NEW_RESULTS = {
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.adaptive_avg_pool3d.default,
    _aten.batch_norm.default,
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
    _aten.group_norm.default,
    _aten.layer_norm.default,
    _aten.linear.default,
    _aten.matmul.default,
    _aten.max_pool1d.default,
    _aten.max_pool2d.default,
    _aten.max_pool3d.default,
    _aten.relu6.default,
    _aten.scaled_dot_product_attention.default,
    _aten.softmax.int,
}


def aliased_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs whose memory the result of a node may share."""
    target = node.target
    if target in (operator.getitem, to_channels_last):
        return node.all_input_nodes[:1]
    if not isinstance(target, torch._ops.OpOverload):
        return []
    schema = target._schema
    if any(result.alias_info is not None for result in schema.returns):
        pairs = zip(node.args, schema.arguments, strict=False)
        return [value for value, a in pairs if a.alias_info is not None and isinstance(value, fx.Node)]
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    if not is_composite or target in _NEW_RESULTS:
        return []
    return [input for input in node.all_input_nodes if _holds_tensors(input)]


def alias_sets(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """For each node that holds tensors, all nodes that may share memory with it, itself included."""
    sets = dict[fx.Node, set[fx.Node]]()
    for node in graph.nodes:
        if not _holds_tensors(node):
            continue
        merged = {node}.union(*(sets[input] for input in aliased_inputs(node) if input in sets))
        for member in merged:
            sets[member] = merged
    return sets


def written_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that may share memory with a tensor that is written to."""
    sets = alias_sets(graph)
    writes = [node for node in graph.nodes if is_write(node)]
    return set[fx.Node]().union(*(sets.get(input, {input}) for node in writes for input in node.all_input_nodes[:1]))


def positions(graph: fx.Graph) -> dict[fx.Node, int]:
    """The place of each node in the order of execution."""
    return {node: i for i, node in enumerate(graph.nodes)}


def _holds_tensors(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value))
