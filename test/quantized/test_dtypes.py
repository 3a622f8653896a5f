"""Forwards that cast tensors, or combine floats with integers and masks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Casting(nn.Module):
    def __init__(self, middle: Callable[[Tensor], Tensor], end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.middle, self.end = middle, end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(self.middle(F.relu(self.first(x)))))


def normalized_in_float64(y: Tensor) -> Tensor:
    z = y.double()
    return ((z - z.mean((2, 3), keepdim=True)) / (z.var((2, 3), keepdim=True) + 1e-5).sqrt()).float()


MIDDLES: dict[str, Callable[[Tensor], Tensor]] = {
    "the type of an activation": lambda y: y.double().exp().to(y.dtype),
    "a mask of the type": lambda y: y * (y > 0.1).to(y.dtype),
    "a mask of the type, by keyword": lambda y: y * (y > 0.1).to(dtype=y.dtype),
    "a mask": lambda y: (y > 0.1).float(),
    "a mask by its type": lambda y: 2 * (y > 0.1).to(torch.float32),
    "integers": lambda y: (4 * y).round().int().float(),
    "the real part": lambda y: torch.fft.ifft2(torch.fft.fft2(y)).real,
    "positions": lambda y: y + torch.arange(y.shape[-1]),
    "float64": normalized_in_float64,
    "float16": lambda y: y.half().float(),
}


@pytest.mark.parametrize("name", MIDDLES)
@pytest.mark.parametrize(("engine", "backend"), [("eager", "x86"), ("pt2e", "x86"), ("pt2e", "onnxruntime")])
def test_casts_between_layers(engine: str, backend: str, name: str) -> None:
    model = Casting(MIDDLES[name], nn.Identity()).eval()
    int8 = quantized.quantize(model, [X], engine=engine, backend=backend)
    assert decibels(model(X), int8(X)) > 15  # rounding moves some values across the bound of a mask
    layers = {row.path: row.runs_in for row in quantized.report(int8).rows if row.path in ("first", "last")}
    assert layers == {"first": "int8", "last": "int8"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_outputs_of_another_type(engine: str, dtype: torch.dtype) -> None:
    model = Casting(nn.Identity(), lambda y: y.to(dtype)).eval()
    output = quantized.quantize(model, [X], engine=engine)(X)
    assert output.dtype is dtype
    assert decibels(model(X).float(), output.float()) > 30


@pytest.mark.parametrize("name", ["float64", "positions"])
def test_casts_in_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = Casting(MIDDLES[name], nn.Identity()).eval()
    deploy.export(model, X, tmp_path / "model.onnx", format="onnx")
    assert decibels(model(X), deploy.load(tmp_path / "model.onnx")(X)) > 100
    int8 = quantized.quantize(model, [X], engine="pt2e", backend="onnxruntime")
    deploy.export(int8, X, tmp_path / "int8.onnx", format="onnx-qdq")
    assert decibels(model(X), deploy.load(tmp_path / "int8.onnx")(X)) > 25


class Conditioned(nn.Module):
    """An image, and an index of its class or domain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.embedding = nn.Embedding(10, 4)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)) + self.embedding(index)[:, :, None, None])


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_embeddings_read_indices(engine: str) -> None:
    model, inputs = Conditioned().eval(), (X, torch.tensor([1, 7]))
    int8 = quantized.quantize(model, [inputs], engine=engine)
    assert decibels(model(*inputs), int8(*inputs)) > 30
    prepared = quantized.prepare_qat(Conditioned(), inputs, engine=engine)
    prepared(*inputs).square().mean().backward()
    prepared.eval()
    assert decibels(prepared(*inputs), quantized.convert(prepared)(*inputs)) > 25
