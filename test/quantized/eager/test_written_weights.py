"""Layers that write into their own weight in every forward, in the eager engine."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])

Write = Callable[[Any], None]


def mask(layer: Any) -> None:
    layer.weight.data *= layer.mask


def mask_anew(layer: Any) -> None:
    layer.weight.data = layer.weight.data * layer.mask


def clamp(layer: Any) -> None:
    with torch.no_grad():
        layer.weight.clamp_(-0.05, 0.05)


def clamp_data(layer: Any) -> None:
    layer.weight.data.clamp_(-0.05, 0.05)


def normalize(layer: Any) -> None:
    with torch.no_grad():
        torch.mul(layer.weight, 1 / layer.weight.norm(), out=layer.weight)


class Convolution(nn.Conv2d):
    def __init__(self, write: Write) -> None:
        super().__init__(4, 8, 3, padding=1)
        self.write = write
        self.register_buffer("mask", MASK.clone())

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        return super().forward(x)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight))
        return super().forward(x)


class Norm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(min=0.5)
        return super().forward(x)


@pytest.mark.parametrize("has_example", [True, False])
@pytest.mark.parametrize("has_run", [True, False])
@pytest.mark.parametrize("write", [mask, mask_anew, clamp, clamp_data, normalize])
def test_training_is_refused(write: Write, has_run: bool, has_example: bool) -> None:
    """After a run of the model, some writes would change no value until the next step of an optimizer."""
    model = nn.Sequential(Convolution(write), nn.ReLU(), nn.Conv2d(8, 4, 1))
    if has_run:
        model(X)
    with pytest.raises(TypeError, match=r"^0 is a Convolution .*, which computes its weight in every forward"):
        quantized.prepare_qat(model, X if has_example else None)


@pytest.mark.parametrize("has_example", [True, False])
def test_training_of_other_layers_is_refused(has_example: bool) -> None:
    model = nn.Sequential(Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(TypeError, match=r"^0 is a Linear .*, which computes its weight in every forward"):
        quantized.prepare_qat(model, X if has_example else None)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), Norm(8), nn.ReLU())
    with pytest.raises(TypeError, match=r"^1 is a Norm .*, which computes its weight in every forward"):
        quantized.prepare_qat(model, X if has_example else None)


@pytest.mark.parametrize("write", [mask, mask_anew, clamp, clamp_data])
def test_inference(write: Write) -> None:
    model = nn.Sequential(Convolution(write), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    before = model[0].weight.clone()
    folded, int8 = deploy.fold(model), quantized.quantize(model, [X])
    assert torch.equal(model[0].weight, before)
    assert type(folded[0]) is nn.Conv2d
    assert decibels(model(X), int8(X)) > 25
    assert torch.equal(folded(X), model(X))
