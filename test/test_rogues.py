"""Each row of the matrix fails on a layer broken in its own way, and passes on a sound one."""

import re
from dataclasses import replace

import pytest
import torch
from matrix_record import ROWS_HERE
from rogues import CONTROL, DROPPING, ROGUES, TWIN, WITHOUT_MODE
from torch import nn

from torchvision_layers.testing import Cell, LayerSpec, Row, Sample, Status, Tier, cells_of, run_cell

ROWS = [pytest.param(row, id=row.id, marks=[pytest.mark.slow] * (row.tier is Tier.NIGHTLY)) for row in ROWS_HERE]


@pytest.mark.parametrize("row", ROWS)
def test_row_fails_on_its_rogue(row: Row) -> None:
    outcomes = [run_cell(row, cell) for cell in cells_of(ROGUES[row.id].broken, row)]
    said = [outcome.why for outcome in outcomes if outcome.status is Status.FAILED]
    assert any(re.search(ROGUES[row.id].says, why) for why in said), outcomes


@pytest.mark.parametrize("row", ROWS)
def test_row_passes_on_its_control(row: Row) -> None:
    outcomes = [run_cell(row, cell) for cell in cells_of(ROGUES[row.id].control, row)]
    assert outcomes
    assert all(outcome.status is Status.PASSED for outcome in outcomes), outcomes


FALSE_FLAGS = {
    "is_random of a layer that draws nothing": (CONTROL, {"is_random": True}, "random_flag"),
    "is_random missing": (DROPPING, {"is_random": False}, "random_flag"),
    "reads_mode missing": (CONTROL, {"reads_mode": False}, "train_eval_flag"),
    "reads_mode of a layer that does not": (WITHOUT_MODE, {"reads_mode": True}, "train_eval_flag"),
    "dynamic_dims with the channels": (CONTROL, {"dynamic_dims": (0, 1, 2, 3)}, "export"),
    "islands where there is none": (TWIN, {"islands": (nn.SiLU,)}, "ptq_eager"),
    "is_island of a layer that is not": (TWIN, {"is_island": True}, "ptq_eager"),
}


@pytest.mark.parametrize("name", FALSE_FLAGS)
def test_a_false_flag_is_found(name: str) -> None:
    spec, flags, id = FALSE_FLAGS[name]
    (row,) = [row for row in ROWS_HERE if row.id == id]
    true, false = (
        [run_cell(row, Cell(spec, sample, variant)).status for variant in row.variants]
        for sample in (spec.samples[0], replace(spec.samples[0], **flags))
    )
    assert set(true) == {Status.PASSED}
    assert Status.FAILED in false


def test_every_row_has_a_rogue() -> None:
    assert set(ROGUES) == {row.id for row in ROWS_HERE}


STRETCHES = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "x += y": lambda x, y: x.clone().__iadd__(y),
    "torch.add": torch.add,
    "x.add_": lambda x, y: x.clone().add_(y, alpha=2),
    "x.sub": lambda x, y: x.sub(y),
    "both sides of a product": lambda x, y: x[:, :, :1] * y,
}


@pytest.mark.parametrize("way", STRETCHES)
def test_every_way_to_stretch_an_image_is_seen(way: str) -> None:
    (row,) = [row for row in ROWS_HERE if row.id == "no_broadcast"]

    class Stretching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return STRETCHES[way](x, x[:, :1])

    spec = LayerSpec(Stretching, (Sample("rogue", {}, (2, 3, 6, 7)),))
    outcome = run_cell(row, Cell(spec, spec.samples[0], "eval"))
    assert outcome.status is Status.FAILED
    assert "stretches" in outcome.why
