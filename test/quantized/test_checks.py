"""Differences that a model makes of rounding are accepted, all others are not."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized.checks import check_same_results
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Amplifying(nn.Module):
    """Makes differences 100,000 times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        for _ in range(3):
            x = torch.sin(50 * x)
        return x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_model_that_amplifies_rounding_is_quantized(engine: str) -> None:
    torch.manual_seed(0)
    model = Amplifying().eval()
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(model.conv, model.norm)
    rounded = folded(X)
    for _ in range(3):
        rounded = torch.sin(50 * rounded)
    assert (rounded - model(X)).abs().max() > 1e-3  # more than the check accepts of other models
    quantized.quantize(model, [X], engine=engine)


def test_other_differences_are_not_explained() -> None:
    model, inputs = nn.Conv2d(3, 4, 3), Inputs((X,))
    with torch.no_grad():
        expected = model(X)
        check_same_results(expected * (1 + 1e-5), expected, "differs", model, inputs)
        with pytest.raises(RuntimeError, match="differs"):
            check_same_results(expected * 1.01, expected, "differs", model, inputs)


def test_noise_explains_nothing() -> None:
    with pytest.raises(RuntimeError, match="differs"):
        check_same_results(Noisy()(X), Noisy()(X), "differs", Noisy(), Inputs((X,)))


class ClampedToTensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.low = nn.Parameter(torch.full((1, 8, 1, 1), -0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(self.first(x), min=self.low, max=-self.low)
        return self.last(x.clamp(min=self.low / 2))


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_bounds_of_clamps_are_tensors(engine: str) -> None:
    torch.manual_seed(0)
    model = ClampedToTensors()
    prepared = quantized.prepare_qat(model, X, engine=engine)
    prepared(X)
    model.eval()
    assert decibels(model(X), quantized.convert(prepared)(X)) > 25
    assert decibels(model(X), quantized.quantize(model, [X], engine=engine)(X)) > 25
