"""Inputs with NaN or infinity: what deployed models return is what the model returns, or they refuse the input."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

NAN, INFINITY = float("nan"), float("inf")
X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
REFUSED = "must be finite, because kernels with an activation .* in a tensor of shape"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.last(x) + self.conv(x)).relu()


class Gated(nn.Module):
    """A model for images with holes, which are NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.nan_to_num(x, 0.0, 1.0, -1.0)).relu()


class Masked(nn.Module):
    """Attention with a mask that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.conv(x).relu().flatten(2).transpose(1, 2)
        output: Tensor = self.head(((y @ y.transpose(1, 2)) + mask).softmax(-1) @ y)
        return output


class Normalized(nn.Module):
    """Divides zero by zero for images without activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3)
        nn.init.uniform_(self.first.weight, 0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.last(y / y.amax((1, 2, 3), keepdim=True)).relu()


def with_activation(activation: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation)


HIDING = {
    "ReLU": with_activation(nn.ReLU()),
    "ReLU6": with_activation(nn.ReLU6()),
    "Hardsigmoid": with_activation(nn.Hardsigmoid()),
    "Hardtanh": with_activation(nn.Hardtanh()),
    "sum": Residual,
}
OPEN = {
    "SiLU": with_activation(nn.SiLU()),
    "Hardswish": with_activation(nn.Hardswish()),
    "LeakyReLU": with_activation(nn.LeakyReLU()),
    "max pool": with_activation(nn.MaxPool2d(2)),
    "holes": Gated,
}


def with_pixel(value: float) -> Tensor:
    x = X.clone()
    x[0, 1, 5, 5] = value
    return x


def lowered_models(model: nn.Module, folder: Path) -> list[Callable[[Tensor], Tensor]]:
    lowered = deploy.lower(model, X)
    return [lowered, deploy.load(deploy.export(lowered, X, folder / "model.pt2").path)]


def make(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.parametrize("name", HIDING)
def test_activations_do_not_hide_nan(name: str, tmp_path: Path) -> None:
    model = make(HIDING[name])
    for lowered in [*lowered_models(model, tmp_path), deploy.lower(model, X, dtype=torch.bfloat16)]:
        for value in (NAN, INFINITY, -INFINITY):
            with pytest.raises(ValueError, match=REFUSED):
                lowered(with_pixel(value))
        torch.testing.assert_close(lowered(X), model(X), atol=0.05, rtol=0.05)
        assert lowered(X[:0]).shape[0] == 0


@pytest.mark.parametrize("name", OPEN)
@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_other_models_show_nan(name: str, value: float, tmp_path: Path) -> None:
    model, x = make(OPEN[name]), with_pixel(value)
    expected = model(x)
    assert bool(expected.isfinite().all()) == (name == "holes")
    for lowered in lowered_models(model, tmp_path):
        output = lowered(x)
        assert torch.equal(output.isnan(), expected.isnan())
        torch.testing.assert_close(output.nan_to_num(), expected.nan_to_num())


def test_masks_may_be_infinite(tmp_path: Path) -> None:
    model = make(Masked)
    mask = torch.zeros(64, 64).masked_fill(torch.ones(64, 64).triu(1).bool(), -math.inf)
    expected = model(X, mask)
    assert expected.isfinite().all()
    torch.testing.assert_close(deploy.lower(model, (X, mask.clamp(-1)))(X, mask), expected)
    for format, name in (("onnx", "model.onnx"), ("openvino", "model.xml")):
        loaded = deploy.load(deploy.export(model, (X, mask.clamp(-1)), tmp_path / name, format=format).path)
        torch.testing.assert_close(loaded(X, mask), expected, atol=1e-5, rtol=1e-4)


def test_nan_that_begins_inside(tmp_path: Path) -> None:
    model, dark = make(Normalized), -X.abs()
    assert model(dark).isnan().all()
    for lowered in lowered_models(model, tmp_path):
        torch.testing.assert_close(lowered(X), model(X))
        with pytest.raises(ValueError, match=REFUSED):
            lowered(dark)
        assert lowered(X[:0]).shape == (0, 4, 6, 6)  # which runs on zeros
    int8 = quantized.quantize(model, [X], engine="pt2e")
    file = deploy.load(deploy.export(int8, X, tmp_path / "int8.pt2").path)
    assert float((file(X) - model(X)).detach().abs().max()) < 0.1
    with pytest.raises(ValueError, match="must not become NaN"):
        file(dark)


@pytest.mark.parametrize(("format", "name"), [("onnx", "model.onnx"), ("openvino", "model.xml")])
def test_files_of_other_runtimes_refuse_nan(format: str, name: str, tmp_path: Path) -> None:
    model = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
    loaded = deploy.load(deploy.export(model, X, tmp_path / name, format=format).path)
    torch.testing.assert_close(loaded(X), model(X), atol=1e-5, rtol=1e-4)
    for value in (NAN, INFINITY):
        with pytest.raises(ValueError, match=r"must not contain NaN or positive .*, got one in .* \[2, 3, 10, 10\]"):
            loaded(with_pixel(value))
    assert loaded(X[:0]).shape == (0, 4, 4, 4)
