"""Models that compute something once for each image size, such as position embeddings, and keep it."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def grid(height: int, width: int) -> Tensor:
    return torch.linspace(0, 1, height)[:, None] + torch.linspace(0, 1, width)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.kept: dict[object, Tensor] = {}
        self.last: Tensor | None = None
        self.register_buffer("buffer", torch.empty(0), persistent=False)

    def positions(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + self.positions(x)).relu()


class BySize(Net):
    def positions(self, x: Tensor) -> Tensor:
        if x.shape[-2:] not in self.kept:
            self.kept[x.shape[-2:]] = grid(*x.shape[-2:])
        return self.kept[x.shape[-2:]]


class ByString(Net):
    def positions(self, x: Tensor) -> Tensor:
        key = f"{x.shape[-2]} x {x.shape[-1]}"
        if key not in self.kept:
            self.kept[key] = grid(*x.shape[-2:])
        return self.kept[key]


class InAttribute(Net):
    def positions(self, x: Tensor) -> Tensor:
        if self.last is None or self.last.shape != x.shape[-2:]:
            self.last = grid(*x.shape[-2:])
        return self.last


class InBuffer(Net):
    def positions(self, x: Tensor) -> Tensor:
        if self.buffer.shape != x.shape[-2:]:
            self.buffer = grid(*x.shape[-2:])
        return self.buffer


class InRegisteredBuffer(Net):
    def positions(self, x: Tensor) -> Tensor:
        if self.buffer.shape != x.shape[-2:]:
            self.register_buffer("buffer", grid(*x.shape[-2:]), persistent=False)
        return self.buffer


class InFunction(Net):
    cached = staticmethod(cache(grid))

    def positions(self, x: Tensor) -> Tensor:
        return self.cached(*x.shape[-2:])


@pytest.mark.parametrize("net", [BySize, ByString, InAttribute, InBuffer, InRegisteredBuffer, InFunction])
@pytest.mark.parametrize("format", ["onnx", "onnx-qdq", "pt2"])
@pytest.mark.filterwarnings("ignore:the file takes images of 16 x 16 only", "ignore:the int8 graph takes images")
def test_files(net: type[Net], format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = net().eval().requires_grad_(False)
    model: nn.Module = original
    expected = model(X)
    if format == "onnx-qdq":
        model = quantized.quantize(model, [X], engine="pt2e", backend="onnxruntime")
    path = tmp_path / ("model.pt2" if format == "pt2" else "model.onnx")
    deploy.export(model, X, path, format=format)
    tolerance = 1e-5 if format != "onnx-qdq" else 0.03
    assert (deploy.load(path)(X) - expected).abs().max() < tolerance * expected.abs().max()
    assert torch.equal(original(X), expected)


def test_forward_that_hashes_sizes_is_named_if_it_cannot_be_exported(tmp_path: Path) -> None:
    class ReadsValue(BySize):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(RuntimeError, match="uses the value of a tensor as a Python number"):
        deploy.export(ReadsValue().eval(), X, tmp_path / "model.onnx", format="onnx")
