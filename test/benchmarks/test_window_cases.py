"""Candidates of the benchmark of Swin Transformers compute the same as the layer; other tests compare the layer."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from measure import training_step  # the benchmarks are scripts, not a package
from window_cases import WINDOW_CASES

SMALL = [case._replace(shape=(1, *case.shape[1:])) for case in WINDOW_CASES]


@pytest.mark.parametrize("case", SMALL, ids=str)
@torch.no_grad()
def test_candidates_compute_the_same(case) -> None:
    candidates = case.build()
    assert list(candidates)[1] == "ours"
    assert all(candidate.is_equal for candidate in candidates.values())
    x = torch.randn(case.shape)
    expected, *others = (candidate.module.eval()(x) for candidate in candidates.values())
    for output in others:
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_candidates_train(case) -> None:
    """Autograd raises an error for unused parameters."""
    input = torch.randn(case.shape)
    for candidate in case.build().values():
        first, *others = training_step(candidate.module, input)()
        assert first.shape == input.shape
        assert len(others) == len(list(candidate.module.parameters()))
