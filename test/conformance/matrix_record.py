"""The record of the matrix: what came out of each cell, as JSON beside the docs, and the tables made of it."""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from torchvision_layers.testing import GROUPS, Cell, LayerSpec, Outcome, Row, Status, Tier, cells_of

from .golden_check import golden
from .specs import SPECS

__all__ = [
    "GROUPS_HERE",
    "HEAVY",
    "JSON",
    "OUTCOMES",
    "ROWS_HERE",
    "TABLE",
    "all_cells",
    "as_text",
    "is_slow",
    "load",
    "render",
    "updated",
]

DOCS = Path(__file__).parents[2] / "docs" / "source"
JSON = DOCS / "conformance.json"
TABLE = DOCS / "conformance.rst"

#: The public rows, with those that need what only this repository has.
GROUPS_HERE: dict[str, tuple[Row, ...]] = {
    **GROUPS,
    "Values": (*GROUPS["Values"], golden),
}
ROWS_HERE: tuple[Row, ...] = tuple(row for rows in GROUPS_HERE.values() for row in rows)

#: Rows in which a layer takes so long that only its first sample runs at every change, by name of the layer.
HEAVY = {"MultiHeadedSpatialAttention": ("compile", "export", "onnx", "pt2e_ptq", "pt2e_qat")}

#: Where a run keeps what came out, to write it in the end.
OUTCOMES = pytest.StashKey[list[tuple[str, Outcome]]]()

#: By layer, row and place (a sample, with its variant).
Record = dict[str, dict[str, dict[str, str]]]


def all_cells() -> Iterable[tuple[LayerSpec, Row, str]]:
    for spec in SPECS:
        for row in ROWS_HERE:
            for cell in cells_of(spec, row):
                yield spec, row, cell.place


def is_slow(row: Row, cell: Cell) -> bool:
    """Whether a cell runs in ``make test-all`` only."""
    is_first = cell.sample is cell.spec.samples[0]
    return row.tier is Tier.NIGHTLY or (not is_first and row.id in HEAVY.get(cell.spec.name, ()))


def as_text(outcome: Outcome) -> str:
    return f"{outcome.status.value}: {outcome.why}" if outcome.why else outcome.status.value


@functools.cache
def load() -> Record:
    return json.loads(JSON.read_text(encoding="utf-8")) if JSON.exists() else {}


def updated(record: Record, outcomes: Iterable[tuple[str, Outcome]]) -> Record:
    """The record with new outcomes, in order, and without cells that are there no more."""
    new = {(layer, outcome.row, outcome.place): as_text(outcome) for layer, outcome in outcomes}
    result: Record = {}
    for spec, row, place in all_cells():
        text = new.get((spec.name, row.id, place), record.get(spec.name, {}).get(row.id, {}).get(place))
        if text is not None:
            result.setdefault(spec.name, {}).setdefault(row.id, {})[place] = text
    return result


def status_of(text: str) -> Status:
    return Status(text.split(":")[0])


def _mark(cells: Mapping[str, str]) -> str:
    """One sign for a layer in a row."""
    statuses = {status_of(text) for text in cells.values()}
    if not statuses:
        return "not run yet"
    if Status.XFAILED in statuses:
        return "×"
    return "–" if statuses == {Status.NOT_APPLICABLE} else "✓"


def _table(lines: list[list[str]]) -> list[str]:
    """A simple table of reStructuredText; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = "  ".join("=" * width for width in widths)
    head, *body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return [line.rstrip() for line in (rule, head, rule, *body, rule)] + [""]


def _exceptions(record: Record) -> list[str]:
    """What did not pass, by row and reason, with the layers, and the places where these are not all of them."""
    layers: dict[tuple[str, str], list[str]] = {}
    for layer, rows in record.items():
        for row, cells in rows.items():
            for text in dict.fromkeys(text for text in cells.values() if text != Status.PASSED.value):
                places = [place for place, other in cells.items() if other == text]
                where = "" if len(places) == len(cells) else f" ({', '.join(places)})"
                layers.setdefault((row, text), []).append(f"``{layer}``{where}")
    order = {row.id: i for i, row in enumerate(ROWS_HERE)}
    return [
        line
        for (row, text), names in sorted(layers.items(), key=lambda item: order[item[0][0]])
        for line in (f"``{row}``, {text}", f"    {', '.join(names)}")
    ]


def render(record: Record) -> str:
    """The page: a table by subject, layers down and checks across, what each check asks for, and what did not pass."""
    statuses = Counter(
        status_of(text) for rows in record.values() for cells in rows.values() for text in cells.values()
    )
    page = [
        "Conformance",
        "===========",
        "",
        ".. This page is made from conformance.json by ``make table``; a test fails where it is not current.",
        "",
        f"{len(record)} layers, {sum(len(spec.samples) for spec in SPECS)} samples, {len(ROWS_HERE)} checks: "
        f"{statuses[Status.PASSED]} cells passed, {statuses[Status.NOT_APPLICABLE]} do not apply, "
        f"{statuses[Status.XFAILED]} failed for a reason outside of the layer.",
        "",
        "✓ passed in every sample and variant that it applies to, – does not apply, × failed as expected in some; "
        "the reasons stand below.",
        "",
    ]
    for layer, heavy in HEAVY.items():
        ids = ", ".join(f"``{id}``" for id in heavy)
        page += [f"The samples of ``{layer}`` after the first run in {ids} in ``make test-all`` only.", ""]
    for group, rows in GROUPS_HERE.items():
        lines = [[f"``{layer}``", *(_mark(cells.get(row.id, {})) for row in rows)] for layer, cells in record.items()]
        page += [group, "-" * len(group), "", *_table([["layer", *(row.id for row in rows)], *lines])]
        for row in rows:
            nightly = " Runs in ``make test-all`` only." if row.tier is Tier.NIGHTLY else ""
            page += [f"``{row.id}``", f"    {row.summary}{nightly}"]
        page += [""]
    page += ["What did not pass", "-----------------", "", *_exceptions(record)]
    return "\n".join(page) + "\n"
