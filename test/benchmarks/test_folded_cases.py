"""The candidates of the folded benchmarks compute what they claim."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from folded_cases import FOLDED_CASES  # the benchmarks are scripts, not a package


@pytest.mark.parametrize("case", FOLDED_CASES, ids=str)
@torch.no_grad()
def test_candidates_that_claim_it_compute_what_the_layer_does(case) -> None:
    """In float64, which leaves no doubt; the layer as it is has tests of its own."""
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
        assert is_close == is_equal, name  # a bound that does less gives something else


@pytest.mark.parametrize("case", FOLDED_CASES, ids=str)
def test_nothing_is_left_to_normalize(case) -> None:
    folded = [module for name, (module, _, _) in case.build().items() if name in ("ours", "torchvision, folded")]
    assert not [module for layer in folded for module in layer.modules() if "BatchNorm" in type(module).__name__]
