"""Candidates of the folded benchmarks compute the same as the layer, unless they are marked as different."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from folded_cases import FOLDED_CASES  # the benchmarks are scripts, not a package


@pytest.mark.parametrize("case", FOLDED_CASES, ids=str)
@torch.no_grad()
def test_equal_candidates_compute_the_same_as_the_layer(case) -> None:
    """Compares in float64; the unfolded layer has its own tests."""
    torch.set_default_dtype(torch.float64)
    try:
        candidates = case.build()
    finally:
        torch.set_default_dtype(torch.float32)
    layer = candidates["ours, not folded"].module
    assert isinstance(layer, case.layer)
    x = torch.randn(1, case.shape[1], 9, 7, dtype=torch.float64)
    expected = layer(x)
    for name, (module, is_equal, _) in candidates.items():
        output = module(x)
        assert output.shape == expected.shape, name
        is_close = torch.allclose(output, expected, rtol=1e-10, atol=1e-10)
        assert is_close == is_equal, name  # a baseline that computes less has other outputs


@pytest.mark.parametrize("case", FOLDED_CASES, ids=str)
def test_no_batch_norm_remains(case) -> None:
    folded = [module for name, (module, _, _) in case.build().items() if name in ("ours", "torchvision, folded")]
    assert not [module for layer in folded for module in layer.modules() if "BatchNorm" in type(module).__name__]
