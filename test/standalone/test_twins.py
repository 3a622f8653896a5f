"""Twins in quantizable files: the signature of their layer, and the same results after fusion for any ``forward``."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers.standalone import _twins


class Model(nn.Module):
    """Calls its children in the order of ``run``."""

    def __init__(self, run: Callable[["Model", Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.parts = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.add = _twins.Addition()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def twice(model: Model, x: Tensor) -> Tensor:
    y = model.conv(x)
    return model.relu(model.bn(y)) + y


def shared(model: Model, x: Tensor) -> Tensor:
    return model.relu(model.conv(model.bn(model.conv(x))))


def sliced(model: Model, x: Tensor) -> Tensor:
    return model.parts[:1](x)


def stepped(model: Model, x: Tensor) -> Tensor:
    return model.parts[2](model.parts[0](x))


def branching(model: Model, x: Tensor) -> Tensor:
    return model.parts(x) if x.sum() > 1e9 else model.relu(model.bn(model.conv(x)))


def added(model: Model, x: Tensor) -> Tensor:
    return model.relu(model.add(model.parts(x) - 2, x))


def plain(model: Model, x: Tensor) -> Tensor:
    return model.relu(model.bn(model.conv(x)))


class TwinOfBase(_twins.QuantizableLayer):
    """Twins may share a base class."""


class Twin(TwinOfBase, tnn.SqueezeExcitation):
    pass


class TwinWithConstructor(Twin):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels // 2)


def test_signature_of_a_twin() -> None:
    """Layers that create a twin read its required arguments, such as ``squeeze_channels``."""
    assert inspect.signature(Twin) == inspect.signature(tnn.SqueezeExcitation)
    assert list(inspect.signature(TwinWithConstructor).parameters) == ["channels"]
    with pytest.raises(TypeError, match="required"):
        Twin(4)


RUNS = [twice, shared, sliced, stepped, branching, added, plain]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("run", RUNS)
def test_fusion_keeps_results(run: Callable[[Model, Tensor], Tensor]) -> None:
    model = _twins.QuantizableModel(Model(run).eval())
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    model.fuse_model()
    torch.testing.assert_close(model(x), expected)
    fused = any(type(module).__name__ == "ConvReLU2d" for module in model.modules())
    assert fused == (run in (stepped, branching, added, plain))
    if run is added:
        assert model.model.add.relu


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_fusion_keeps_hooks() -> None:
    model = _twins.QuantizableModel(Model(plain).eval())
    outputs: list[Tensor] = []
    model.model.conv.register_forward_hook(lambda module, args, output: outputs.append(output))
    x = torch.randn(2, 3, 5, 5)
    model(x)
    model.fuse_model()
    model(x)
    assert torch.equal(*outputs)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_linear_layers_and_dropout() -> None:
    for training in (False, True):
        parts = nn.Sequential(
            nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()
        )
        model = _twins.QuantizableModel(parts.train(training))
        x = torch.randn(5, 4)
        expected = model.eval()(x)
        model.train(training).fuse_model()
        torch.testing.assert_close(model.eval()(x), expected)
        assert type(model.model[0]).__name__ == "LinearReLU"


def test_arithmetic_equals_that_of_torch() -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(_twins.Multiplication()(a, b), a * b)
    with pytest.raises(ValueError, match=r"input must have the shape of other \[2, 1\], got \[2, 3\]"):
        _twins.Addition()(a, b[:, :1])
