"""The search for the range of a histogram finds the range that torch's and torchao's observers find."""

import importlib

import pytest
import torch

from torchvision_layers.quantized.range_search import FastRangeSearch


@pytest.mark.parametrize("module", ["torch.ao.quantization.observer", "torchao.quantization.pt2e.observer"])
@pytest.mark.parametrize("shape", ["normal", "one-sided", "heavy tails", "constant"])
def test_same_range(module: str, shape: str) -> None:
    observer_class = importlib.import_module(module).HistogramObserver
    original = observer_class()
    fast = type("Fast", (FastRangeSearch, observer_class), {})()
    for scale in (1.0, 3.0, 0.2):
        x = scale * torch.randn(3000)
        batch = {"normal": x, "one-sided": x.relu(), "heavy tails": x**5, "constant": x * 0 + scale}[shape]
        original(batch)
        fast(batch)
        for expected, value in zip(original._non_linear_param_search(), fast._non_linear_param_search(), strict=True):
            assert torch.equal(value, expected)
    assert all(map(torch.equal, original.calculate_qparams(), fast.calculate_qparams()))
