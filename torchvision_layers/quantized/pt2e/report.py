"""Report of the modules of a model in its graph."""

import operator

from torch import Tensor, fx

from ..report_row import Int8Support, ReportRow
from ..wrapper import Stage
from .model import QuantizableGraph
from .nodes import (
    COMPUTE_OPS,
    excluded_by,
    is_call,
    is_dequantize,
    is_fused_into,
    is_padding,
    is_quantize,
    module_path,
    operands,
    operator_name,
)

__all__ = ["graph_rows", "rows_with_nodes"]


def graph_rows(graph: QuantizableGraph) -> list[ReportRow]:
    """A row for each module without children or with products in its own ``forward``, in the order of the model.

    ``after`` names the operators; it is ``"folded"`` for a batch norm that went into weights, ``"identity"`` for a
    module that does nothing in eval mode, and ``"-"`` for one that is never called.
    """
    return [row for row, _ in rows_with_nodes(graph)]


def rows_with_nodes(graph: QuantizableGraph) -> list[tuple[ReportRow, list[fx.Node]]]:
    """The rows of :func:`graph_rows`, each with its nodes."""
    nodes: dict[str, list[fx.Node]] = {path: [] for path in graph.classes_before}
    for node in graph.body.graph.nodes:
        path = module_path(node) if node.op == "call_function" else None
        # Only compute ops count in a module with children.
        has_row = path in graph.leaves or is_call(node, COMPUTE_OPS)
        if path in nodes and has_row and isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            nodes[path].append(node)
    return [(_row(graph, path, nodes), nodes[path]) for path in nodes if path in graph.leaves or nodes[path]]


def _row(graph: QuantizableGraph, path: str, nodes_by_path: dict[str, list[fx.Node]]) -> ReportRow:
    before, nodes = graph.classes_before[path], nodes_by_path[path]
    after = " ".join(dict.fromkeys(operator_name(node) for node in nodes if node.target is not operator.getitem))
    if not nodes and path not in graph.called_paths:
        return ReportRow(path, before, "-", "float", "is never called")
    if graph.stage is not Stage.INT8:
        return ReportRow(path, before, after or "identity", "float", "not converted yet")
    source = graph.norm_inputs.get(path)
    if not nodes and source is not None:
        runs_in = "int8" if any(_is_int8(node) for node in nodes_by_path.get(source, [])) else "float"
        return ReportRow(path, before, "folded", runs_in, f"fused into {source}", (source,))
    if not nodes:
        if path in graph.weighted:
            return ReportRow(path, before, "-", "float", "its result is a constant or not used")
        return ReportRow(path, before, "identity", "int8", Int8Support.PASS_THROUGH.value)
    by = next((by for node in nodes if (by := excluded_by(node, graph.settings.excluded)) is not None), None)
    if by is not None:
        return ReportRow(path, before, after, "float", f"excluded by {by}")
    if all(_is_int8(node) or (is_padding(node) and _keeps_int8(node)) for node in nodes) and (
        len(nodes) > 1 or _is_int8(nodes[0])
    ):
        return ReportRow(path, before, after, "int8", Int8Support.CONVERTED.value)
    units = [_fusion_target(node) for node in nodes]
    targets = tuple(unit for unit in units if unit is not None)
    if len(targets) == len(nodes):
        return ReportRow(path, before, after, "int8", f"fused into {', '.join(targets)}", targets)
    if all(_keeps_int8(node) for node in nodes):
        return ReportRow(path, before, after, "int8", Int8Support.PASS_THROUGH.value)
    int8_ops = " ".join(dict.fromkeys(operator_name(node) for node in nodes if _is_int8(node)))
    why = Int8Support.FLOAT_FALLBACK.value + (f" for all operators but {int8_ops}" if int8_ops else "")
    return ReportRow(path, before, after, "float", why)


def _is_int8(node: fx.Node) -> bool:
    """Whether the node multiplies tensors that come from int8."""
    return is_call(node, COMPUTE_OPS) and all(is_dequantize(tensor) for tensor in operands(node))


def _keeps_int8(node: fx.Node) -> bool:
    """Whether the inputs of the node are dequantized and every consumer quantizes its output."""
    is_quantized = bool(node.users) and all(is_quantize(user) for user in node.users)
    tensors = [argument for argument in node.all_input_nodes if isinstance(argument.meta.get("val"), Tensor)]
    return is_quantized and all(map(is_dequantize, tensors))


def _fusion_target(node: fx.Node) -> str | None:
    """Path of the module whose kernel also computes an activation: a compute op, or the block that adds to one."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or not is_fused_into(node, source):
        return None
    if _is_int8(source):
        return module_path(source)
    terms = source.all_input_nodes
    if any(_is_int8(term) and len(term.users) == 1 for term in terms) or all(is_dequantize(term) for term in terms):
        return module_path(source) or "model"
    return None
