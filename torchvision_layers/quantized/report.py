"""What became of each module of a model on its way to int8."""

from dataclasses import dataclass

from torch import nn

from ._checking import check_module
from ._graph_report import graph_rows
from ._kernels import Kernel, is_int8, is_unit, kernel
from ._observed import FloatIsland
from ._report_row import ReportRow, with_hosts
from .graph import QuantizableGraph
from .model import QuantizableModel

__all__ = ["Report", "ReportRow", "report"]


@dataclass(frozen=True)
class Report:
    """All rows, in the order of the model; printed as a table."""

    rows: tuple[ReportRow, ...]

    def __str__(self) -> str:
        cells = [("path", "before", "after", "runs in", "why", "fused with")]
        cells += [(r.path, r.before, r.after, r.runs_in, r.why, ", ".join(r.fused_with)) for r in self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells
        )


def report(model: nn.Module) -> Report:
    """Tells of each module what it became, whether it runs in int8 or in float, and why.

    Args:
        model: a model at any stage: float, quantizable, fused, prepared or converted.

    Errors: ``TypeError`` for what is not a module.
    """
    check_module(model)
    if isinstance(model, QuantizableGraph):
        return Report(with_hosts(graph_rows(model)))
    root = model.model if isinstance(model, QuantizableModel) else model
    before = model.classes_before if isinstance(model, QuantizableModel) else {}
    is_converted = any(is_int8(module) for module in model.modules())
    rows: list[ReportRow] = []
    _walk(root, "", before, is_converted, rows)
    return Report(with_hosts(rows))


def _walk(module: nn.Module, path: str, before: dict[str, str], is_converted: bool, rows: list[ReportRow]) -> None:
    row = _row(module, path, before.get(path, ""), is_converted)
    if row is not None:
        rows.append(row)
        return
    for name, child in module.named_children():
        _walk(child, f"{path}.{name}".lstrip("."), before, is_converted, rows)


def _row(module: nn.Module, path: str, before: str, is_converted: bool) -> ReportRow | None:
    """The row of a module that is a unit of its own; ``None`` for one that only calls its children."""
    after = type(module).__name__
    how = kernel(module)
    host = getattr(module, "fused_into", None)
    if host is not None:
        parent = path.split(".")[: -module.fused_levels]  # type: ignore[operator]  # an int
        host_path = ".".join([*parent, host])
        runs_in = "int8" if is_converted else "float"
        return ReportRow(path, before, after, runs_in, f"fused into {host_path}", (host_path,))
    if isinstance(module, FloatIsland):
        inner = getattr(module.module, "float_class", type(module.module))
        return ReportRow(path, before, f"FloatIsland({inner.__name__})", "float", kernel(module.module).value)
    if after == "DeQuantize":  # of a twin that computes something in float, up to where its next stub stands
        return ReportRow(path, before, after, "float", Kernel.ISLAND.value)
    if is_int8(module):
        return ReportRow(path, before, after, "int8", Kernel.CONVERTED.value)
    if how is Kernel.CONTAINER and not is_unit(module):
        return None
    if is_converted and how is Kernel.PASSED:
        return ReportRow(path, before, after, "int8", how.value)
    return ReportRow(path, before, after, "float", how.value if is_converted else "not converted yet")
