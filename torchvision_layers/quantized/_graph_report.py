"""What became of each module of a model in its graph."""

import operator

from torch import Tensor, fx

from ._graph_nodes import HEAVY, is_along, is_call, is_dequantize, is_quantize, module_path, operands
from ._kernels import Kernel
from ._report_row import ReportRow
from .graph import QuantizableGraph

__all__ = ["graph_rows"]


def graph_rows(graph: QuantizableGraph) -> list[ReportRow]:
    """A row for each module without children, in the order of the model.

    ``after`` names the operators; it is ``"folded"`` for a batch norm that went into weights, ``"identity"`` for what
    does nothing in eval, and ``"-"`` for what is never called.
    """
    nodes: dict[str, list[fx.Node]] = {path: [] for path in graph.leaves}
    for node in graph.body.graph.nodes:
        path = module_path(node) if node.op == "call_function" else None
        if path in nodes and isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            nodes[path].append(node)
    return [_row(graph, path, nodes) for path in graph.leaves]


def _row(graph: QuantizableGraph, path: str, nodes: dict[str, list[fx.Node]]) -> ReportRow:
    before, mine = graph.classes_before[path], nodes[path]
    after = " ".join(dict.fromkeys(_operator(node) for node in mine if node.target is not operator.getitem))
    if not mine and path not in graph.called:
        return ReportRow(path, before, "-", "float", "is never called")
    if not graph.packed_for:
        return ReportRow(path, before, after or "identity", "float", "not converted yet")
    host = graph.norm_hosts.get(path)
    if not mine and host is not None:
        runs_in = "int8" if any(_is_int8(node) for node in nodes.get(host, [])) else "float"
        return ReportRow(path, before, "folded", runs_in, f"fused into {host}", (host,))
    if not mine:
        if path in graph.weighted:
            return ReportRow(path, before, "-", "float", "is never called")
        return ReportRow(path, before, "identity", "int8", Kernel.PASSED.value)
    if all(_is_int8(node) for node in mine):
        return ReportRow(path, before, after, "int8", Kernel.CONVERTED.value)
    units = [_unit(node) for node in mine]
    hosts = tuple(unit for unit in units if unit is not None)
    if len(hosts) == len(mine):
        return ReportRow(path, before, after, "int8", f"fused into {', '.join(hosts)}", hosts)
    if all(_is_between(node) for node in mine):
        return ReportRow(path, before, after, "int8", Kernel.PASSED.value)
    return ReportRow(path, before, after, "float", Kernel.ISLAND.value)


def _operator(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_")


def _is_int8(node: fx.Node) -> bool:
    """Whether the node multiplies tensors that come out of int8."""
    return is_call(node, HEAVY) and all(is_dequantize(tensor) for tensor in operands(node))


def _is_between(node: fx.Node) -> bool:
    """Whether the node takes int8 and gives int8."""
    gives = bool(node.users) and all(is_quantize(user) for user in node.users)
    return gives and all(is_dequantize(argument) for argument in node.all_input_nodes)


def _unit(node: fx.Node) -> str | None:
    """Path of what an activation is computed along with: a convolution or projection, or the block that adds to one."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or not is_along(node, source):
        return None
    if _is_int8(source):
        return module_path(source)
    terms = source.all_input_nodes
    if any(_is_int8(term) and len(term.users) == 1 for term in terms) or all(is_dequantize(term) for term in terms):
        return module_path(source) or "model"
    return None
