"""What a straight line of kernels leaves alone: checks of layers, and whatever is a user's."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

from ._support import X, called, one_by_one

WRONG = [(2, 5, 12, 10), (2, 2, 12, 10), (2, 6, 12, 10), (3, 12, 10), (1, 2, 3, 12, 10)]


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("layer", [tnn.ConvNormAct, tnn.FusedMBConv, nn.Conv2d], ids=lambda layer: layer.__name__)
def test_errors_are_those_of_the_layers(layer: type[nn.Module], backend: str) -> None:
    """On qnnpack too, whose kernels take any number of channels and read past their end."""
    model = quantized.quantize(nn.Sequential(layer(3, 3, 3)).eval(), [X], backend=backend)
    for shape in WRONG if layer is not nn.Conv2d or backend != "qnnpack" else WRONG[3:]:
        with pytest.raises((ValueError, RuntimeError)) as expected:
            one_by_one(model, torch.randn(shape))
        with pytest.raises(type(expected.value)) as error:
            model(torch.randn(shape))
        assert str(error.value) == str(expected.value)
        if layer is not nn.Conv2d:
            assert "input must have" in str(error.value)
        assert torch.equal(model(X), one_by_one(model, X))


class Own(nn.Sequential):
    """Calls its children in an order of its own."""

    def forward(self, input: Tensor) -> Tensor:
        for module in reversed(self):
            input = module(input)
        return input


class Counts(nn.Module):
    """A module of a user's that has an effect besides its result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(4, 4, 3), 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(input)


@pytest.mark.parametrize("kind", [Own, Counts])
def test_forwards_of_others_are_called_every_time(kind: type[nn.Module]) -> None:
    def build() -> nn.Module:
        return Own(nn.Sequential(nn.Conv2d(4, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 1))) if kind is Own else Counts()

    first = nn.Identity() if kind is Own else nn.Conv2d(3, 4, 1)
    model = quantized.quantize(nn.Sequential(first, build(), nn.ReLU()).eval(), [X])
    inner = model.model[1]
    assert type(inner) is kind
    before, expected = getattr(inner, "calls", 0), one_by_one(model, X)
    for _ in range(3):
        with called(model) as seen:
            assert torch.equal(model(X), expected)
        assert inner in seen
    assert getattr(inner, "calls", 0) == (0 if kind is Own else before + 4)


def test_twins_of_others_are_called_as_modules() -> None:
    class Doubles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = tnn.ConvNormAct(3, 4)

        def forward(self, input: Tensor) -> Tensor:
            return self.conv(input)

    class QuantizableDoubles(quantized.QuantizableLayer, Doubles):
        float_class = Doubles

    model = quantized.quantize(nn.Sequential(Doubles()).eval(), [X])
    assert type(model.model[0]) is QuantizableDoubles
    with called(model) as seen:
        model(X)
    assert model.model[0] in seen
