"""The matrix: every layer, every check, every sample, each with the outcome that the docs show."""

import pytest

from torchvision_layers.testing import Cell, Row, Status, cells_of, run_cell

from .matrix_record import HEAVY, OUTCOMES, ROWS_HERE, TABLE, all_cells, as_text, is_slow, load, render, status_of
from .specs import SPECS

# How many exemptions the layers have for reasons outside of them. May only fall.
EXPECTED_FAILURES = 1

NOT_CURRENT = "docs/source/conformance.* is not current: run `make table`"


CELLS = [
    pytest.param(row, cell, id=f"{spec.name}-{row.id}-{cell.place}", marks=[pytest.mark.slow] * is_slow(row, cell))
    for spec in SPECS
    for row in ROWS_HERE
    for cell in cells_of(spec, row)
]


@pytest.mark.parametrize(("row", "cell"), CELLS)
def test_cell(row: Row, cell: Cell, request: pytest.FixtureRequest) -> None:
    outcome = run_cell(row, cell)
    if outcome.error is not None:
        raise outcome.error
    if request.config.getoption("--write-matrix"):
        request.config.stash[OUTCOMES].append((cell.spec.name, outcome))
        return
    assert as_text(outcome) == load().get(cell.spec.name, {}).get(row.id, {}).get(outcome.place), NOT_CURRENT


def test_the_record_holds_every_cell_and_no_other() -> None:
    recorded = {(layer, row, place) for layer, rows in load().items() for row in rows for place in rows[row]}
    assert recorded == {(spec.name, row.id, place) for spec, row, place in all_cells()}, NOT_CURRENT
    texts = [text for rows in load().values() for cells in rows.values() for text in cells.values()]
    assert Status.FAILED not in {status_of(text) for text in texts}


def test_the_table_is_current() -> None:
    assert TABLE.read_text(encoding="utf-8") == render(load()), NOT_CURRENT


def test_exemptions_are_known_and_fewer_with_time() -> None:
    places = {place for row in ROWS_HERE for place in (row.id, *(f"{row.id}[{variant}]" for variant in row.variants))}
    exemptions = [(spec.name, place, xfail) for spec in SPECS for place, xfail in spec.exempt.items()]
    assert len(exemptions) == EXPECTED_FAILURES
    for layer, place, xfail in exemptions:
        assert place in places, (layer, place)
        assert xfail.reason, (layer, place)
        assert xfail.link.startswith("https://"), (layer, place)


def test_rows_said_to_be_heavy_are_there_and_have_more_than_one_sample() -> None:
    samples = {spec.name: len(spec.samples) for spec in SPECS}
    for layer, rows in HEAVY.items():
        assert samples[layer] > 1
        assert set(rows) <= {row.id for row in ROWS_HERE}
