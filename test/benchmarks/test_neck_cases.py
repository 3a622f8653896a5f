"""Candidates of the benchmark of necks compute the same as the layer; other tests compare the layer."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from measure import training_step  # the benchmarks are scripts, not a package
from neck_cases import NECK_CASES


@pytest.mark.parametrize("case", NECK_CASES, ids=str)
def test_candidates_compute_the_same(case) -> None:
    case = case._replace(shape=(2, *case.shape[1:]))
    candidates = case.build()
    assert list(candidates)[1] == "ours"
    assert any(isinstance(module, case.layer) for module in candidates["ours"].module.modules())
    x = torch.randn(case.shape)
    with torch.no_grad():
        baseline, ours = (candidate.module.eval()(x) for candidate in candidates.values())
    torch.testing.assert_close(ours, baseline, rtol=1e-4, atol=1e-4)
    assert all(candidate.is_equal for candidate in candidates.values())


@pytest.mark.parametrize("case", NECK_CASES, ids=str)
def test_candidates_train(case) -> None:
    case = case._replace(shape=(2, *case.shape[1:]))
    for candidate in case.build().values():
        first, *others = training_step(candidate.module, torch.randn(case.shape))()
        assert first.shape == case.shape
        assert len(others) == len(list(candidate.module.parameters()))
