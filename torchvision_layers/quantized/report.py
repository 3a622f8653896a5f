"""A report on each module of a model on its way to int8."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .._utils.atomic import atomic_path
from .._utils.model_checks import check_module
from .batches import iterate
from .eager.model import unwrapped
from .eager.report import module_rows
from .engine import load_engine
from .pt2e.model import QuantizableGraph
from .pt2e.report import graph_rows
from .pt2e.weights import has_overflowing_products
from .report_row import ReportRow, link_fused
from .trial import Trial
from .wrapper import QuantizableWrapper, Stage

__all__ = ["Report", "ReportRow", "report"]


@dataclass(frozen=True)
class Report:
    """All rows, in the order of the model; ``str(report)`` is a table."""

    rows: tuple[ReportRow, ...]
    #: Signal over error of the outputs of the model, in dB; ``None`` without batches.
    db: float | None = None
    #: Share of the images, or of their pixels, that the int8 model gives the class that the float model gives them;
    #: ``None`` without batches, or if the first output has no dimension of classes.
    agreement: float | None = None
    #: The int8 models that :func:`quantize` made to keep a tolerance, in order; empty if there was none.
    trials: tuple[Trial, ...] = ()
    #: For graphs, whether products overflow on x86 without VNNI instructions; ``None`` for other models.
    needs_vnni: bool | None = None

    def __str__(self) -> str:
        rows = [_cells(row, self.db is not None) for row in self.rows]
        header = ["path", "before", "after", "runs in", "why", "fused with"]
        table = [header + _ERRORS * (self.db is not None), *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return "\n".join([*lines, *self._summary(), *self._path(), *self._target()])

    def worst(self, count: int = 3) -> list[ReportRow]:
        """The modules with the largest errors of their own, the largest first.

        Args:
            count: how many at most. Default: ``3``.

        Errors: ``ValueError`` for a report without errors.
        """
        self._check_errors()
        rows = [row for row in self.rows if row.own_db is not None and row.own_db < math.inf]
        return sorted(rows, key=lambda row: row.own_db or 0.0)[:count]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists, strings and numbers."""
        return {
            "db": self.db,
            "agreement": self.agreement,
            "rows": [asdict(row) for row in self.rows],
            "trials": [asdict(trial) for trial in self.trials],
            "needs_vnni": self.needs_vnni,
        }

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """The rows as comma-separated values, with a header; ranges have two columns.

        Args:
            path: the file to write. Default: ``None``, the text is returned.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for i, row in enumerate(self.rows):
            values: dict[str, object] = {}
            for name, value in asdict(row).items():
                if name in ("observed_range", "int8_range"):
                    low, high = value or (None, None)
                    values |= {f"{name}_low": low, f"{name}_high": high}
                else:
                    values[name] = " ".join(value) if name == "fused_with" else value
            if i == 0:
                writer.writerow(values)
            writer.writerow(values.values())
        if path is None:
            return text.getvalue()
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
        return None

    def plot(self, axes: Any = None) -> Any:
        """Plots the errors along the depth, with the names of the three worst modules, and returns the axes.

        Args:
            axes: of matplotlib, to draw into. Default: ``None``, those of a new figure.

        Errors: ``ImportError`` without matplotlib; ``ValueError`` for a report without errors.
        """
        self._check_errors()
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("plot needs matplotlib, which is not installed: pip install matplotlib") from error
        if axes is None:
            _, axes = pyplot.subplots(figsize=(10, 4), layout="constrained")
        rows = [row for row in self.rows if row.accumulated_db is not None]
        for label, values in (
            ("own, given exact inputs", [row.own_db for row in rows]),
            ("accumulated", [row.accumulated_db for row in rows]),
        ):
            points = {i: value for i, value in enumerate(values) if value is not None and math.isfinite(value)}
            axes.plot(list(points), list(points.values()), marker=".", label=label)
        for row in self.worst():
            place = rows.index(row), row.own_db
            axes.annotate(row.path or "model", place, textcoords="offset points", xytext=(0, -12))
        axes.set_xlabel("module, in the order of the model")
        axes.set_ylabel("signal over error (dB)")
        axes.legend()
        return axes

    def _check_errors(self) -> None:
        if self.db is None:
            raise ValueError("report must hold errors: pass batches, as in report(int8, batches)")

    def _summary(self) -> list[str]:
        if self.db is None:
            return []
        line = f"whole model: {self.db:.1f} dB"
        if self.agreement is not None:
            line += f", {self.agreement:.1%} of the classes agree"
        worst = ", ".join(f"{row.path or 'model'} ({row.own_db:.1f} dB)" for row in self.worst())
        return ["", line, f"worst modules: {worst or 'none'}"]

    def _path(self) -> list[str]:
        """The path that was taken to keep a tolerance."""
        if not self.trials:
            return []
        lines = [
            f"  {len(trial.left_out)} modules left out: {trial.value:.4g}, {trial.float_share:.1%} of the "
            "multiplications in float"
            for trial in self.trials
        ]
        return ["", "trials to keep the tolerance:", *lines]

    def _target(self) -> list[str]:
        return ["", "needs VNNI on x86, where products overflow otherwise"] if self.needs_vnni else []


_ERRORS = ["own dB", "accumulated dB", "observed range", "int8 range", "clipped"]


def _cells(row: ReportRow, has_errors: bool) -> list[str]:
    cells = [row.path, row.before, row.after, row.runs_in, row.why, ", ".join(row.fused_with)]
    if not has_errors:
        return cells
    for value in (row.own_db, row.accumulated_db):
        cells.append("" if value is None else f"{value:.1f}")
    for limits in (row.observed_range, row.int8_range):
        cells.append("" if limits is None else f"{limits[0]:.3g} to {limits[1]:.3g}")
    return [*cells, "" if row.clipped is None else f"{row.clipped:.2%}"]


def report(
    int8: nn.Module, batches: Iterable[Any] | None = None, *, model: nn.Module | None = None, progress: bool = True
) -> Report:
    """Reports for each module what it became, whether it runs in int8 or in float, and why; with batches, its errors.

    The errors of a module are those of its output in dB of signal over error, with the signal from the float model. Its
    own error is that for exact inputs: it comes from rounding the weights, and from rounding and clipping the output.
    The accumulated error includes that of all modules before it. A convolution and the activation in the same int8
    kernel have one output; so do a module and the quantization of what it returns. Further rows hold the inputs and,
    for ``engine="pt2e"``, the sums and other arithmetic of a ``forward``.

    Args:
        int8: a model at any stage: float, quantizable, fused, prepared or converted. With batches, an int8 model.
        batches: measures the errors on these batches, in the forms that :func:`quantize` takes. The float model and the
            int8 model run once on each, side by side, so memory does not grow with depth. Default: ``None``, the report
            has no errors.
        model: the float model that ``int8`` was quantized from, or the trained model that it was converted from.
            Default: ``None``, that model itself, if it still exists and did not change.
        progress: shows a progress bar, as :func:`quantize` does. Default: ``True``.

    Errors: ``TypeError`` if ``int8`` is not a module; ``ValueError`` if it is not in int8 but there are batches, if
    there is no batch, or if ``model`` is needed or is another one.

    Examples::

        >>> model = nn.Sequential(tnn.ConvNormAct(3, 8), nn.Flatten(), nn.Linear(512, 2)).eval()
        >>> batches = [torch.rand(4, 3, 8, 8)]
        >>> quantized.report(quantized.quantize(model, batches), batches).db > 20
        True
    """
    check_module("int8", int8)
    trials = int8.trials if isinstance(int8, QuantizableWrapper) else ()
    if batches is None:
        if model is not None:
            raise ValueError("batches must hold batches if there is a model, got None")
        rows = graph_rows(int8) if isinstance(int8, QuantizableGraph) else module_rows(int8)
        return Report(link_fused(rows), trials=trials, needs_vnni=_needs_vnni(int8))
    if not isinstance(int8, QuantizableWrapper) or int8.stage is not Stage.INT8:
        raise ValueError(f"int8 must be an int8 model from quantize or convert, got a {type(int8).__name__}")
    source = int8.source() if model is None else check_module("model", model)
    called = unwrapped(source)
    rows, outputs = load_engine(int8.engine).measure(int8, source, iterate(batches, called, progress, "measuring"))
    return Report(link_fused(rows), outputs.decibels(), outputs.agreement(), trials, _needs_vnni(int8))


def _needs_vnni(int8: nn.Module) -> bool | None:
    if not isinstance(int8, QuantizableGraph) or int8.stage is not Stage.INT8:
        return None
    return int8.backend == "x86" or (
        int8.backend in ("onnxruntime", "tensorrt") and has_overflowing_products(int8.body)
    )
