"""Candidates of the benchmark of vision transformers compute the same as the layer; other tests compare the layer."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from measure import training_step  # the benchmarks are scripts, not a package
from token_cases import TOKEN_CASES

SMALL = [case._replace(shape=(1, *case.shape[1:])) for case in TOKEN_CASES]


@pytest.mark.parametrize("case", SMALL, ids=str)
@torch.no_grad()
def test_candidates_compute_the_same(case) -> None:
    candidates = case.build()
    assert list(candidates)[1] == "ours"
    assert "timm" in candidates
    x = torch.randn(case.shape)
    expected, *others = (candidate.module.eval()(x) for candidate in candidates.values())
    for output in others:
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert all(candidate.is_equal for candidate in candidates.values())


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_candidates_train(case) -> None:
    for candidate in case.build().values():
        first, *others = training_step(candidate.module, torch.randn(case.shape))()
        assert first.shape == case.shape
        assert len(others) == len(list(candidate.module.parameters()))
