"""Each check fails on its mutant and passes on a correct layer."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from torchvision_layers import quantized
from torchvision_layers.testing import Case, Check, LayerSpec, Sample, Status, Tier, cases_of, run_case
from torchvision_layers.testing._checks.pt2e import _assert_is_int8 as _assert_graph_is_int8

from .matrix_record import ALL_CHECKS
from .mutants import CONTROL, DROPPING, MORE_MUTANTS, MUTANTS, TWIN, WITHOUT_MODE, Mutant

BY_ID = {check.id: check for check in ALL_CHECKS}
CHECKS = [
    pytest.param(check, id=check.id, marks=[pytest.mark.slow] * (check.tier is Tier.NIGHTLY)) for check in ALL_CHECKS
]


def assert_fails(check: Check, mutant: Mutant) -> None:
    outcomes = [run_case(check, case) for case in cases_of(mutant.broken, check)]
    reasons = [outcome.reason for outcome in outcomes if outcome.status is Status.FAILED]
    assert any(re.search(mutant.message, reason) for reason in reasons), outcomes


def assert_passes(check: Check, mutant: Mutant) -> None:
    outcomes = [run_case(check, case) for case in cases_of(mutant.control, check)]
    assert outcomes
    assert all(outcome.status is Status.PASSED for outcome in outcomes), outcomes


@pytest.mark.parametrize("check", CHECKS)
def test_check_fails_on_its_mutant(check: Check) -> None:
    assert_fails(check, MUTANTS[check.id])


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_on_its_control(check: Check) -> None:
    assert_passes(check, MUTANTS[check.id])


@pytest.mark.parametrize(("id", "mutant"), MORE_MUTANTS, ids=lambda value: getattr(value, "message", value))
def test_check_detects_more_mutants(id: str, mutant: Mutant) -> None:
    assert_fails(BY_ID[id], mutant)
    assert_passes(BY_ID[id], mutant)


WRONG_FLAGS = {
    "is_random of a deterministic layer": (CONTROL, {"is_random": True}, "random_flag"),
    "is_random missing": (DROPPING, {"is_random": False}, "random_flag"),
    "waits of a layer that does not wait": (CONTROL, {"waits": True}, "other_device"),
    "reads_mode missing": (CONTROL, {"reads_mode": False}, "train_eval_flag"),
    "reads_mode of a layer that ignores it": (WITHOUT_MODE, {"reads_mode": True}, "train_eval_flag"),
    "dynamic_dims with the channels": (CONTROL, {"dynamic_dims": (0, 1, 2, 3)}, "export"),
    "unused float fallback": (TWIN, {"islands": (nn.SiLU,)}, "ptq_eager"),
    "is_island of an int8 layer": (TWIN, {"is_island": True}, "ptq_eager"),
}


@pytest.mark.parametrize("name", WRONG_FLAGS)
def test_a_wrong_flag_is_detected(name: str) -> None:
    spec, flags, id = WRONG_FLAGS[name]
    check = BY_ID[id]
    correct, wrong = (
        [run_case(check, Case(spec, sample, variant)).status for variant in check.variants]
        for sample in (spec.samples[0], replace(spec.samples[0], **flags))
    )
    assert set(correct) == {Status.PASSED}
    assert Status.FAILED in wrong


def test_every_check_has_a_mutant() -> None:
    assert set(MUTANTS) == set(BY_ID)


BROADCASTS = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "x += y": lambda x, y: x.clone().__iadd__(y),
    "torch.add": torch.add,
    "x.add_": lambda x, y: x.clone().add_(y, alpha=2),
    "x.sub": lambda x, y: x.sub(y),
    "both operands of a product": lambda x, y: x[:, :, :1] * y,
}


@pytest.mark.parametrize("operation", BROADCASTS)
def test_every_broadcast_of_an_image_is_detected(operation: str) -> None:
    class Broadcasting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return BROADCASTS[operation](x, x[:, :1])

    spec = LayerSpec(Broadcasting, (Sample("mutant", {}, (2, 3, 6, 7)),))
    outcome = run_case(BY_ID["no_broadcast"], Case(spec, spec.samples[0], "eval"))
    assert outcome.status is Status.FAILED
    assert "broadcasts" in outcome.reason


def test_float_operands_in_a_graph_are_detected() -> None:
    case = Case(CONTROL, CONTROL.samples[0])
    layer = case.layer()
    for index, message in ((0, "operand .* is float"), (1, "the weight of conv2d.* is not stored in int8")):
        model = quantized.quantize(layer, [case.input()], engine="pt2e")
        before = quantized.report(model)
        _assert_graph_is_int8(layer, model, before)
        (conv,) = [node for node in model.body.graph.nodes if "conv2d" in str(node.target)]
        stored = conv.args[index].all_input_nodes[0]
        (operand,) = stored.all_input_nodes if index == 0 else [conv.args[1]]
        if index == 1:
            name = str(stored.target)
            setattr(model.body, name, nn.Parameter(getattr(model.body, name).float(), requires_grad=False))
        conv.update_arg(index, operand)
        with pytest.raises(AssertionError, match=message):
            _assert_graph_is_int8(layer, model, before)
        if index == 0:
            with pytest.raises(AssertionError, match="left in float: .*conv"):
                _assert_graph_is_int8(layer, model, quantized.report(model))


@pytest.mark.parametrize("id", ["ptq_eager", "qat_eager", "int8_io"])
def test_an_unsupported_backend_does_not_apply(id: str) -> None:
    outcome = run_case(BY_ID[id], Case(TWIN, TWIN.samples[0], "a backend of another machine"))
    assert outcome.status is Status.NOT_APPLICABLE
    assert "supported_engines" in outcome.reason
