"""Exported graphs that depend on no memory format, with few writes."""

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from ...quantized.pt2e.passes import remove_dropout
from ...quantized.pt2e.writes import is_write
from .aliasing import alias_sets, aliased_inputs, positions, written_nodes

__all__ = ["check_operators", "clean", "make_functional"]

_aten = torch.ops.aten

#: Views that depend on strides, with the operators that copy if the strides do not fit.
_FLEXIBLE: dict[object, Any] = {
    _aten.view.default: _aten.reshape.default,
    _aten._unsafe_view.default: _aten.reshape.default,
    _aten.view_as.default: _aten.reshape_as.default,
}
#: Operators whose results depend on strides.
_STRIDE_DEPENDENT = {
    _aten.as_strided.default,
    _aten.view.dtype,
    _aten.sym_stride.int,
    _aten.sym_storage_offset.default,
    _aten.stride.int,
    _aten.storage_offset.default,
}
_NOTES = {"_assert_tensor_metadata"}


def clean(module: fx.GraphModule) -> None:
    """Makes the operators of a graph independent of memory formats, and functional as far as possible, in place.

    Tensors that are still written to are contiguous, as the model has them.

    Errors: ``ValueError`` for a model that writes to its own parameters or buffers.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "").partition(".")[0] in _NOTES:
            graph.erase_node(node)
    remove_dropout(module)
    for node in list(graph.nodes):
        if is_write(node):
            make_functional(graph, node)
    written = written_nodes(graph)
    for node in list(graph.nodes):
        if node in written:
            if not aliased_inputs(node) and isinstance(node.meta.get("val"), Tensor):
                _insert_copy(graph, node)
        elif node.target in _FLEXIBLE:
            node.target = _FLEXIBLE[node.target]
        elif node.target in _STRIDE_DEPENDENT:
            _insert_contiguous(graph, node)
        elif node.target is _aten.contiguous.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    module.recompile()


def check_operators(module: fx.GraphModule) -> None:
    """Errors: ``RuntimeError`` for a graph with control flow, or with objects other than tensors."""
    for node in module.graph.nodes:
        is_tensor = node.op != "get_attr" or isinstance(attrgetter(str(node.target))(module), Tensor)
        is_branch = isinstance(node.target, torch._ops.HigherOrderOperator)
        if is_branch or not (
            is_tensor or all(isinstance(u.target, torch._ops.HigherOrderOperator) for u in node.users)
        ):
            raise RuntimeError(
                f"model cannot be lowered: its graph contains {node.target}; a forward must not use control flow on "
                "values of tensors, nor turn on autocasting"
            )


def make_functional(graph: fx.Graph, node: fx.Node) -> None:
    """Replaces an operator that writes into its input by one that returns a new tensor, if no node sees a difference.

    A write into an input of the model is lost on purpose.
    """
    target: Any = node.target
    written = node.args[0]
    functional = _functional(target)
    owner = written
    while isinstance(owner, fx.Node) and aliased_inputs(owner):
        owner = aliased_inputs(owner)[0]
    if isinstance(owner, fx.Node) and owner.op == "get_attr":
        raise ValueError(
            f"model must not write to its own parameters and buffers in eval mode, it writes to {owner.target}"
        )
    if functional is None or not isinstance(written, fx.Node):
        return
    dtype = written.meta["val"].dtype
    if any(isinstance(i.meta.get("val"), Tensor) and i.meta["val"].dtype != dtype for i in node.all_input_nodes):
        return  # the write converts
    order = positions(graph)
    for member in alias_sets(graph)[written]:
        is_seen = any(order[user] > order[node] for user in member.users)
        if member is not written and order[member] < order[node] and is_seen:
            return
    node.target = functional
    written.replace_all_uses_with(node, lambda user: order[user] > order[node])


def _functional(target: Any) -> Any:
    """The operator without the underscore at the end of its name; ``None`` if there is none."""
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    packet = getattr(_aten, name[:-1], None) if name.endswith("_") and target.namespace == "aten" else None
    return getattr(packet, overload, None) if packet is not None and overload in packet.overloads() else None


def _insert_copy(graph: fx.Graph, node: fx.Node) -> None:
    with graph.inserting_after(node):
        copy = graph.call_function(_aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
    copy.meta = dict(node.meta)
    node.replace_all_uses_with(copy, lambda user: user is not copy)


def _insert_contiguous(graph: fx.Graph, node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    with graph.inserting_before(node):
        contiguous = graph.call_function(_aten.contiguous.default, (source,))
    contiguous.meta = dict(source.meta)
    node.replace_input_with(source, contiguous)
