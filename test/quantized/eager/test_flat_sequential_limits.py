"""Limits of flattening: checks of layers still run, and user-defined modules are still called."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

from ._support import X, record_calls, run_unflattened

INVALID_SHAPES = [(2, 5, 12, 10), (2, 2, 12, 10), (2, 6, 12, 10), (3, 12, 10), (1, 2, 3, 12, 10)]


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("layer", [tnn.ConvNormAct, tnn.FusedMBConv, nn.Conv2d], ids=lambda layer: layer.__name__)
def test_invalid_shapes_raise_the_error_of_the_layer(layer: type[nn.Module], backend: str) -> None:
    """Matters most on qnnpack, whose kernels accept any number of channels and read out of bounds."""
    model = quantized.quantize(nn.Sequential(layer(3, 3, 3)).eval(), [X], backend=backend)
    for shape in INVALID_SHAPES if layer is not nn.Conv2d or backend != "qnnpack" else INVALID_SHAPES[3:]:
        with pytest.raises((ValueError, RuntimeError)) as expected:
            run_unflattened(model, torch.randn(shape))
        with pytest.raises(type(expected.value)) as error:
            model(torch.randn(shape))
        assert str(error.value) == str(expected.value)
        if layer is not nn.Conv2d:
            assert "input must have" in str(error.value)
        assert torch.equal(model(X), run_unflattened(model, X))


class Reversed(nn.Sequential):
    """Calls its children in reverse order."""

    def forward(self, input: Tensor) -> Tensor:
        for module in reversed(self):
            input = module(input)
        return input


class CallCounter(nn.Module):
    """A user-defined module with a side effect."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(4, 4, 3), 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(input)


@pytest.mark.parametrize("cls", [Reversed, CallCounter])
def test_user_forwards_run_on_every_call(cls: type[nn.Module]) -> None:
    def build() -> nn.Module:
        return (
            Reversed(nn.Sequential(nn.Conv2d(4, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 1)))
            if cls is Reversed
            else CallCounter()
        )

    first = nn.Identity() if cls is Reversed else nn.Conv2d(3, 4, 1)
    model = quantized.quantize(nn.Sequential(first, build(), nn.ReLU()).eval(), [X])
    inner = model.model[1]
    assert type(inner) is cls
    before, expected = getattr(inner, "calls", 0), run_unflattened(model, X)
    for _ in range(3):
        with record_calls(model) as calls:
            assert torch.equal(model(X), expected)
        assert inner in calls
    assert getattr(inner, "calls", 0) == (0 if cls is Reversed else before + 4)


def test_user_twins_are_called_as_modules() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = tnn.ConvNormAct(3, 4)

        def forward(self, input: Tensor) -> Tensor:
            return self.conv(input)

    class QuantizableWrapper(quantized.QuantizableLayer, Wrapper):
        float_class = Wrapper

    model = quantized.quantize(nn.Sequential(Wrapper()).eval(), [X])
    assert type(model.model[0]) is QuantizableWrapper
    with record_calls(model) as calls:
        model(X)
    assert model.model[0] in calls
