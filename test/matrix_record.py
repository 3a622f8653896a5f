"""The record of the matrix: what came out of each cell, as JSON beside the docs, and the tables made of it."""

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from golden_row import golden
from int8_rows import INT8_ROWS
from layer_specs import SPECS

from torchvision_layers.testing import GROUPS, LayerSpec, Outcome, Row, Status, Tier, cells_of

__all__ = [
    "GROUPS_HERE",
    "JSON",
    "OUTCOMES",
    "ROWS_HERE",
    "TABLE",
    "all_cells",
    "as_text",
    "load",
    "render",
    "updated",
    "write",
]

DOCS = Path(__file__).parent.parent / "docs" / "source"
JSON = DOCS / "conformance.json"
TABLE = DOCS / "conformance.rst"

#: The public rows, with those that need what only this repository has.
GROUPS_HERE: dict[str, tuple[Row, ...]] = {
    **GROUPS,
    "Values": (*GROUPS["Values"], golden),
    "Int8": INT8_ROWS,
}
ROWS_HERE: tuple[Row, ...] = tuple(row for rows in GROUPS_HERE.values() for row in rows)

#: Where a run keeps what came out, to write it in the end.
OUTCOMES = pytest.StashKey[list[tuple[str, Outcome]]]()

#: By layer, row and place (a sample, with its variant).
Record = dict[str, dict[str, dict[str, str]]]


def all_cells() -> Iterable[tuple[LayerSpec, Row, str]]:
    for spec in SPECS:
        for row in ROWS_HERE:
            for cell in cells_of(spec, row):
                yield spec, row, cell.place


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


def write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _mark(cells: Mapping[str, str]) -> str:
    """One sign for a layer in a row."""
    texts = list(cells.values())
    if not texts:
        return "not run yet"
    if any(text.startswith(Status.XFAILED.value) for text in texts):
        return "×"
    if all(text.startswith(Status.NOT_APPLICABLE.value) for text in texts):
        return "–"
    return "✓"


def _list_table(header: list[str], lines: list[list[str]]) -> list[str]:
    table = [".. list-table::", "   :header-rows: 1", ""]
    for line in (header, *lines):
        table += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(line)]
    return [*table, ""]


def render(record: Record) -> str:
    """The page: a table by subject, layers down and checks across, and what each check asks for."""
    counts = {status: 0 for status in Status}
    for rows in record.values():
        for cells in rows.values():
            for text in cells.values():
                counts[next(status for status in Status if text.startswith(status.value))] += 1
    page = [
        "Conformance",
        "===========",
        "",
        ".. This page is made from conformance.json by ``make table``; a test fails where it is not current.",
        "",
        f"{len(record)} layers, {sum(len(spec.samples) for spec in SPECS)} samples, {len(ROWS_HERE)} checks: "
        f"{counts[Status.PASSED]} cells passed, {counts[Status.NOT_APPLICABLE]} do not apply, "
        f"{counts[Status.XFAILED]} fail for a reason outside of the layer.",
        "",
        "✓ passed in every sample and variant that it applies to, – does not apply, × fails as expected (see below).",
        "",
    ]
    for group, rows in GROUPS_HERE.items():
        page += [group, "-" * len(group), ""]
        lines = [[f"``{layer}``", *(_mark(cells.get(row.id, {})) for row in rows)] for layer, cells in record.items()]
        page += _list_table(["layer", *(row.id for row in rows)], lines)
        for row in rows:
            nightly = " *Runs in* ``make test-all`` *only.*" if row.tier is Tier.NIGHTLY else ""
            page += [f"``{row.id}``", f"    {row.summary}{nightly}"]
        page += [""]
    page += ["What does not apply, and why", "----------------------------", ""]
    lines = []
    for layer, rows in record.items():
        for row, cells in rows.items():
            reasons: dict[str, list[str]] = {}
            for place, text in cells.items():
                if text != Status.PASSED.value:
                    reasons.setdefault(text, []).append(place)
            for text, places in reasons.items():
                where = "all" if len(places) == len(cells) else ", ".join(places)
                lines.append([f"``{layer}``", row, where, text])
    page += _list_table(["layer", "check", "where", "why"], lines)
    return "\n".join(page).rstrip() + "\n"
