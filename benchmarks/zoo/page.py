"""The page of the docs, from the record."""

import statistics
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .columns import COLUMNS, EXPORTS, PAIRS, SAME_PLACES
from .models import ZOO
from .record import Record

__all__ = ["PATH", "describe", "render"]

PATH = Path(__file__).parents[2] / "docs" / "source" / "zoo.rst"
#: How much noisier than its peer a column may be, in dB.
MARGIN = 0.5

Cell = Mapping[str, Any]

HEAD = """\
Zoo
===

.. ``make zoo`` generates this page from benchmarks/zoo/zoo.json; a test fails if it is out of date.

Models of torchvision and timm, one of each family, folded, quantized and exported as they are. Weights are random, from
a seed; gains, shifts and statistics of norms are stirred. Eight images of noise calibrate each int8 model and measure
it; folding and files get two. Detectors are quantized in place, their backbone only. Each column of a model has its own
process, with one thread.

dB
    Signal over the error of the int8 output against the float model, over all output tensors together.
peer
    Torch by itself on the same batch: FX mode with its default configuration for the eager engine, torchao with the
    default configuration of its quantizer for x86 for the PT2E engine. If torchao has more dB than the column for x86,
    it leaves layers in float.
same places
    Torchao with its default observers, rounding where the kernels of the backend do. Those of onnxruntime and TensorRT
    also round sums, and those of onnxruntime the results of convolutions, which torchao's quantizer for x86 leaves in
    float. Weights for onnxruntime are also bounded for CPUs without VNNI, in the column of this package only: with
    ``vnni=True``, the eight models that are more than 0.5 dB below this peer are 0.3 dB below it to 0.8 dB above.
float
    Operations that run in float, from :func:`quantized.report <torchvision_layers.quantized.report>`.
left
    Convolutions and linear layers that do not run in int8, counted without this package. A dash means none.
s
    Seconds of processor time of the conversion: preparing, calibrating and converting.
"""


def describe(figures: Cell) -> str:
    """The figures of a cell, or its reason, in one line."""
    if "reason" in figures:
        return f"FAILED, {figures['reason']}"
    return ", ".join(f"{name} {_number(value)}" for name, value in figures.items() if name != "conditions")


def render(record: Record) -> str:
    """The page: a summary, a table for each column of this package, and the reasons of failures."""
    page = [HEAD, *_section("Summary", _summary(record))]
    for column, peer in PAIRS.items():
        page += _section(_title(column), _comparison(record, column, peer))
    page += _section("Folding", _folding(record))
    page += _section("Exporting", _exporting(record))
    page += _section("Conditions", _conditions(record))
    return "\n".join(page).rstrip() + "\n"


def _summary(record: Record) -> list[str]:
    head = [
        "column",
        "recorded",
        "ok",
        "all int8",
        "median dB",
        f"over {MARGIN} dB below peer",
        "at the same places",
        "median s, relative to peer",
    ]
    lines = []
    for column in COLUMNS:
        cells = [cell for _, cell in _cells(record, column)]
        ok = [cell for cell in cells if "reason" not in cell]
        noise = [cell["decibels"] for cell in ok if "decibels" in cell]
        lines.append(
            [
                column,
                str(len(cells)),
                str(len(ok)),
                str(sum(cell["layers in float"] == 0 for cell in ok)) if noise else "",
                f"{statistics.median(noise):.1f}" if noise else "",
                *_beside_peer(record, column),
            ]
        )
    return _table([head, *lines])


def _beside_peer(record: Record, column: str) -> list[str]:
    both = _pairs(record, column, PAIRS)
    if not both:
        return ["", "", ""]
    ratio = statistics.median(ours["seconds"] / max(theirs["seconds"], 0.01) for ours, theirs in both)
    return [_below(both), _below(_pairs(record, column, SAME_PLACES)), f"{ratio:.1f}"]


def _pairs(record: Record, column: str, peers: Mapping[str, str]) -> list[tuple[Cell, Cell]]:
    """The cells of a column beside those of its peer, where both have figures."""
    cells = _cells(record, column) if column in peers else []
    pairs = [(ours, record[name].get(peers[column], {"reason": ""})) for name, ours in cells]
    return [(ours, theirs) for ours, theirs in pairs if "reason" not in ours and "reason" not in theirs]


def _below(pairs: list[tuple[Cell, Cell]]) -> str:
    below = sum(ours["decibels"] < theirs["decibels"] - MARGIN for ours, theirs in pairs)
    return f"{below} of {len(pairs)}" if pairs else ""


def _comparison(record: Record, column: str, peer: str) -> list[str]:
    same = SAME_PLACES.get(column)
    head = ["model", "dB", "peer's", *(["same places"] if same else []), "float", "left", "peer's", "s", "peer's"]
    lines = []
    for name, ours in _cells(record, column):
        theirs = record[name].get(peer, {})
        figures = [(ours, "decibels"), (theirs, "decibels")]
        figures += [(record[name].get(same, {}), "decibels")] if same else []
        figures += [(ours, "fallbacks"), (ours, "layers in float"), (theirs, "layers in float")]
        figures += [(ours, "seconds"), (theirs, "seconds")]
        lines.append([f"``{name}``", *(_figure(cell, key) for cell, key in figures)])
    peers = [peer, same] if same else [peer]
    return [*_table([head, *lines]), *(line for name in (column, *peers) for line in _reasons(record, name))]


def _folding(record: Record) -> list[str]:
    text = (
        "``left`` counts batch norms that receive the output of a convolution after folding, ``before`` does before it."
    )
    head = ["model", "before", "left", "largest difference", "s"]
    keys = ("norms", "norms left", "difference", "seconds")
    lines = [[f"``{name}``", *(_figure(cell, key) for key in keys)] for name, cell in _cells(record, "fold")]
    return [text, "", *_table([head, *lines]), *_reasons(record, "fold")]


def _exporting(record: Record) -> list[str]:
    text = (
        "The difference between file and model, relative to the largest output, and the seconds of the export. Float "
        "formats are written from the folded model, ``onnx-qdq`` from the graph for onnxruntime."
    )
    head = ["model", *(title for format in EXPORTS for title in (format, "s"))]
    lines = []
    for name in ZOO:
        cells = [record.get(name, {}).get(format, {}) for format in EXPORTS]
        if any(cells):
            figures = [_figure(cell, key) for cell in cells for key in ("difference", "seconds")]
            lines.append([f"``{name}``", *figures])
    return [text, "", *_table([head, *lines]), *(line for format in EXPORTS for line in _reasons(record, format))]


def _conditions(record: Record) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, cells in record.items():
        for conditions in dict.fromkeys(cell["conditions"] for cell in cells.values()):
            names.setdefault(conditions, []).append(f"``{name}``")
    return [line for conditions, models in names.items() for line in (conditions, f"    {', '.join(models)}")]


def _reasons(record: Record, column: str) -> list[str]:
    """The models that failed, by reason."""
    models: dict[str, list[str]] = {}
    for name, cell in _cells(record, column):
        if "reason" in cell:
            models.setdefault(cell["reason"], []).append(f"``{name}``")
    return [
        line
        for reason, names in models.items()
        for line in (f"{column}, {', '.join(names)}", f"    ``{_literal(reason)}``")
    ]


def _literal(text: str) -> str:
    """The beginning of a text, as reStructuredText accepts it in a literal."""
    return textwrap.shorten(text.replace("`", "'"), 240, placeholder=" …") or "no message"


def _cells(record: Record, column: str) -> list[tuple[str, Cell]]:
    return [(name, record[name][column]) for name in ZOO if column in record.get(name, {})]


def _figure(cell: Cell, key: str) -> str:
    if not cell:
        return "not run"
    return "×" if "reason" in cell else _number(cell[key], key)


def _number(value: float, key: str = "") -> str:
    if key == "layers in float" and value == 0:
        return "–"
    formats: dict[str, Callable[[float], str]] = {"difference": "{:.0e}".format}
    return formats.get(key, "{:.1f}".format)(value) if isinstance(value, float) else str(value)


def _title(column: str) -> str:
    engine, backend = column.split()
    return f"{'Eager engine' if engine == 'eager' else 'PT2E engine'}, {backend}"


def _section(title: str, lines: list[str]) -> list[str]:
    return [title, "-" * len(title), "", *lines, ""]


def _table(lines: list[list[str]]) -> list[str]:
    """A simple table of reStructuredText; the first line is its header."""
    widths = [max(1, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    rule = "  ".join("=" * width for width in widths)
    head, *body = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
    return [line.rstrip() for line in (rule, head, rule, *body, rule)] + [""]
