"""Each row of the matrix fails on a layer broken in its own way, and passes on a sound one."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from torchvision_layers import quantized
from torchvision_layers.testing import Cell, LayerSpec, Row, Sample, Status, Tier, cells_of, run_cell
from torchvision_layers.testing._rows.pt2e import _assert_is_int8 as _assert_graph_is_int8

from .matrix_record import ROWS_HERE
from .mutants import CONTROL, DROPPING, MORE_ROGUES, ROGUES, TWIN, WITHOUT_MODE, Rogue

ROWS = [pytest.param(row, id=row.id, marks=[pytest.mark.slow] * (row.tier is Tier.NIGHTLY)) for row in ROWS_HERE]


def check_fails(row: Row, rogue: Rogue) -> None:
    outcomes = [run_cell(row, cell) for cell in cells_of(rogue.broken, row)]
    said = [outcome.why for outcome in outcomes if outcome.status is Status.FAILED]
    assert any(re.search(rogue.says, why) for why in said), outcomes


def check_passes(row: Row, rogue: Rogue) -> None:
    outcomes = [run_cell(row, cell) for cell in cells_of(rogue.control, row)]
    assert outcomes
    assert all(outcome.status is Status.PASSED for outcome in outcomes), outcomes


@pytest.mark.parametrize("row", ROWS)
def test_row_fails_on_its_rogue(row: Row) -> None:
    check_fails(row, ROGUES[row.id])


@pytest.mark.parametrize("row", ROWS)
def test_row_passes_on_its_control(row: Row) -> None:
    check_passes(row, ROGUES[row.id])


@pytest.mark.parametrize(("id", "rogue"), MORE_ROGUES, ids=lambda value: getattr(value, "says", value))
def test_row_finds_other_faults_too(id: str, rogue: Rogue) -> None:
    (row,) = [row for row in ROWS_HERE if row.id == id]
    check_fails(row, rogue)
    check_passes(row, rogue)


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


def test_float_left_in_a_graph_is_seen() -> None:
    cell = Cell(CONTROL, CONTROL.samples[0])
    layer = cell.layer()
    for place, says in ((0, "takes .*, which is float"), (1, "the weight of conv2d.* is not stored in int8")):
        model = quantized.quantize(layer, [cell.input()], engine="pt2e")
        before = quantized.report(model)
        _assert_graph_is_int8(layer, model, before)
        (conv,) = [node for node in model.body.graph.nodes if "conv2d" in str(node.target)]
        stored = conv.args[place].all_input_nodes[0]
        (taken,) = stored.all_input_nodes if place == 0 else [conv.args[1]]
        if place == 1:
            name = str(stored.target)
            setattr(model.body, name, nn.Parameter(getattr(model.body, name).float(), requires_grad=False))
        conv.update_arg(place, taken)
        with pytest.raises(AssertionError, match=says):
            _assert_graph_is_int8(layer, model, before)
        if place == 0:
            with pytest.raises(AssertionError, match="left in float: .*conv"):
                _assert_graph_is_int8(layer, model, quantized.report(model))


@pytest.mark.parametrize("id", ["ptq_eager", "qat_eager", "int8_io"])
def test_a_backend_that_the_machine_lacks_does_not_apply(id: str) -> None:
    (row,) = [row for row in ROWS_HERE if row.id == id]
    outcome = run_cell(row, Cell(TWIN, TWIN.samples[0], "a backend of another machine"))
    assert outcome.status is Status.NOT_APPLICABLE
    assert "supported_engines" in outcome.why
