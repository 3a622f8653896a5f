"""The checks find planted faults, and show a failure as source that runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchvision_layers.deploy.folding import folding_pass
from torchvision_layers.quantized.eager import in_place, workflow
from torchvision_layers.quantized.eager.int8_arithmetic import Int8Addition, Int8Concatenation, Int8Multiplication
from torchvision_layers.quantized.pt2e import workflow as pt2e
from torchvision_layers.quantized.range_search import FastRangeSearch

from .running import run
from .source import load

Patch = pytest.MonkeyPatch


def _fold_wrong_scale(patch: Patch) -> None:
    """Every norm is folded with gains that are a thousandth too large."""
    original = folding_pass.scale_and_shift

    def wrong(*args: Any) -> Any:
        factors = original(*args)
        return factors and (factors[0] * 1.001, factors[1])

    patch.setattr(folding_pass, "scale_and_shift", wrong)


def _fold_without_shift(patch: Patch) -> None:
    original = folding_pass.scale_and_shift

    def wrong(*args: Any) -> Any:
        factors = original(*args)
        return factors and (factors[0], None)

    patch.setattr(folding_pass, "scale_and_shift", wrong)


def _add_without_second_term(patch: Patch) -> None:
    def wrong(self: Int8Addition, input: Tensor, other: Tensor) -> Tensor:
        return torch.ops.quantized.add(input, torch.zeros_like(other), self.scale, self.zero_point)

    patch.setattr(Int8Addition, "forward", wrong)


def _concatenate_with_the_first_scale(patch: Patch) -> None:
    patch.setattr(Int8Concatenation, "forward", lambda self, inputs: torch.cat(list(inputs), self.dim))


def _multiply_with_a_wrong_range(patch: Patch) -> None:
    original = Int8Multiplication.__init__

    def wrong(self: Int8Multiplication, scale: float, zero_point: int) -> None:
        original(self, scale / 2, zero_point)

    patch.setattr(Int8Multiplication, "__init__", wrong)


def _observe_a_narrow_range(patch: Patch) -> None:
    """Ranges end at half of the largest value."""
    original = FastRangeSearch._non_linear_param_search

    def wrong(self: FastRangeSearch) -> tuple[Tensor, Tensor]:
        low, high = original(self)
        return low / 2, high / 2

    patch.setattr(FastRangeSearch, "_non_linear_param_search", wrong)


def _lose_writes(patch: Patch) -> None:
    """Writes through views are lost, and the comparison that would find it is off."""
    patch.setattr(in_place, "_shares_memory", lambda module, node: False)
    patch.setattr(workflow, "check_same_results", lambda *args: None)


def _round_before_writes(patch: Patch) -> None:
    patch.setattr(pt2e, "reread_after_writes", lambda module: [])


FAULTS: dict[str, list[Callable[[Patch], None]]] = {
    "fold": [_fold_wrong_scale, _fold_without_shift],
    "eager x86": [
        _add_without_second_term,
        _concatenate_with_the_first_scale,
        _multiply_with_a_wrong_range,
        _observe_a_narrow_range,
        _lose_writes,
    ],
    "pt2e x86": [_round_before_writes],
}
#: Only some of the hundred models show these, or their check takes long.
SLOW = {_lose_writes, _multiply_with_a_wrong_range, _round_before_writes}
CASES = [
    pytest.param(check, fault, id=fault.__name__[1:], marks=[pytest.mark.slow] if fault in SLOW else [])
    for check, faults in FAULTS.items()
    for fault in faults
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("check", "fault"), CASES)
def test_planted_faults_are_found(check: str, fault: Callable[[Patch], None], monkeypatch: Patch) -> None:
    fault(monkeypatch)
    assert run(100, 0, {check: 1}, shrink_seconds=0, ends_at_failure=True).failures


def test_a_failure_becomes_a_small_source_that_runs(monkeypatch: Patch, tmp_path: Any) -> None:
    _fold_wrong_scale(monkeypatch)
    summary = run(100, 0, {"fold": 1}, shrink_seconds=10, ends_at_failure=True)
    (found,) = summary.failures.values()
    text = found.report()
    assert text.startswith("# Fails: fold\n# folded")
    assert text.count("self.") <= 8
    module = load(text, tmp_path)
    monkeypatch.undo()
    assert not module.build().training
    assert len(module.inputs(2)[0]) == 2
