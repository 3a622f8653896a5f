"""The functions of torch that the tests replace by faster ones give equal results."""

import pytest
import torch
from torch.ao.quantization.observer import HistogramObserver


@pytest.mark.parametrize("seed", range(4))
def test_range_search(seed: int) -> None:
    search = HistogramObserver._non_linear_param_search
    if not hasattr(search, "__wrapped__"):
        pytest.skip("replaced with NumPy 2 only")
    torch.manual_seed(seed)
    observer = HistogramObserver()
    for scale in (1.0, 3.0):
        x = scale * torch.randn(500)
        observer(x.relu() if seed % 2 else x)
    for fast, original in zip(search(observer), search.__wrapped__(observer), strict=True):
        assert torch.equal(fast, original)
