"""Forwards that read the number of images by ``len``, which torch.export alone takes for a constant."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Token(nn.Module):
    """Adds a learned token to the features of each image, as decoders repeat their queries."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.token = nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x) + self.token.expand(len(x), -1, -1, -1)) * len([1, 2])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Token().eval()


def noise(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@torch.no_grad()
def test_int8_graphs_take_other_batches(model: nn.Module) -> None:
    int8 = quantized.quantize(model, [X], engine="pt2e")
    for images in (X[:1], torch.cat([X, X, X])):
        assert noise(int8(images), model(images)) < 0.03
    assert "len" not in globals()


def test_graphs_are_trained(model: nn.Module) -> None:
    prepared = quantized.prepare_qat(model, X, engine="pt2e")
    prepared(torch.cat([X, X])).square().mean().backward()
    with torch.no_grad():
        assert noise(quantized.convert(prepared)(X), model(X)) < 0.05


@torch.no_grad()
@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_files_take_other_batches(model: nn.Module, name: str, tmp_path: Path) -> None:
    loaded = deploy.load(deploy.export(model, X, tmp_path / name).path)
    for images in (X[:1], torch.cat([X, X, X])):
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_lowered_models_take_other_batches(model: nn.Module) -> None:
    lowered = deploy.lower(model, X)
    for images in (X[:1], torch.cat([X, X, X])):
        torch.testing.assert_close(lowered(images), model(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_recurrent_layers_fix_the_width_of_a_file(tmp_path: Path) -> None:
    """torch.export repeats the steps of an LSTM."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv2d(3, 8, 3, padding=1), nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            columns: Tensor = self.conv(x).mean(2).transpose(1, 2)
            return self.lstm(columns)[0]

    torch.manual_seed(0)
    model = Reader().eval()
    with pytest.warns(UserWarning, match="the file takes images of 8 x 8 only: .* that torch.export takes for constan"):
        loaded = deploy.load(deploy.export(model, X, tmp_path / "model.pt2", lowered=False).path)
    torch.testing.assert_close(loaded(X[:1]), model(X[:1]), rtol=0, atol=1e-6)
