"""A report on each module of a model on its way to int8."""

from dataclasses import dataclass

from torch import nn

from .._utils.checks import check_module
from .eager.report import module_rows
from .pt2e.model import QuantizableGraph
from .pt2e.report import graph_rows
from .report_row import ReportRow, link_fused

__all__ = ["Report", "ReportRow", "report"]


@dataclass(frozen=True)
class Report:
    """All rows, in the order of the model; ``str(report)`` is a table."""

    rows: tuple[ReportRow, ...]

    def __str__(self) -> str:
        cells = [("path", "before", "after", "runs in", "why", "fused with")]
        cells += [(r.path, r.before, r.after, r.runs_in, r.why, ", ".join(r.fused_with)) for r in self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells
        )


def report(model: nn.Module) -> Report:
    """Reports for each module what it became, whether it runs in int8 or in float, and why.

    Args:
        model: a model at any stage: float, quantizable, fused, prepared or converted.

    Errors: ``TypeError`` if ``model`` is not a module.
    """
    check_module("model", model)
    return Report(link_fused(graph_rows(model) if isinstance(model, QuantizableGraph) else module_rows(model)))
