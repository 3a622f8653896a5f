"""Adaptive pools to several pixels in ONNX files, for images of every size."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

X = torch.randn(2, 3, 16, 18, generator=torch.Generator().manual_seed(0))
SIZES = ((2, 3, 16, 18), (1, 3, 7, 31), (3, 3, 14, 14), (2, 3, 4, 5))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveAvgPool2d((2, 7)),
        nn.AdaptiveAvgPool2d((1, 4)),
        nn.AdaptiveAvgPool2d((None, 2)),
        nn.AdaptiveMaxPool2d(3),
        nn.AdaptiveMaxPool2d((1, 5)),
        nn.Sequential(nn.AdaptiveAvgPool2d((5, 6)), nn.AdaptiveAvgPool2d(2)),  # from a fixed size
    ],
    ids=str,
)
def test_images(pool: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), pool).eval()
    loaded = deploy.load(deploy.export(model, X, tmp_path / "model.onnx", format="onnx").path)
    for shape in SIZES:
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "shape"), [(nn.AdaptiveAvgPool1d(3), (2, 4, 10)), (nn.AdaptiveMaxPool1d(2), (1, 4, 7))]
)
def test_sequences(pool: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), pool).eval()
    loaded = deploy.load(deploy.export(model, torch.randn(2, 4, 8), tmp_path / "m.onnx", format="onnx").path)
    x = torch.randn(shape)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool3d((2, 3, 1)), nn.AdaptiveMaxPool3d((3, 1, 2))])
def test_volumes(pool: nn.Module, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv3d(2, 3, 1), pool).eval()
    loaded = deploy.load(deploy.export(model, torch.randn(2, 2, 6, 7, 8), tmp_path / "m.onnx", format="onnx").path)
    x = torch.randn(3, 2, 5, 9, 4)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


def test_infinite_values(tmp_path: Path) -> None:
    """A window takes nothing from outside, not even an infinity."""

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.adaptive_max_pool2d(x, 2)

    loaded = deploy.load(deploy.export(Pool().eval(), X, tmp_path / "m.onnx", format="onnx").path)
    x = torch.full((1, 3, 4, 4), -3e38)
    assert torch.equal(loaded(x), x[:, :, :2, :2])


def test_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 5))
    int8 = quantized.quantize(model.eval(), [X], engine="pt2e", backend="onnxruntime")
    loaded = deploy.load(deploy.export(int8, X, tmp_path / "m.onnx", format="onnx-qdq").path)
    x = torch.randn(3, 3, 19, 12)
    expected = model(x).detach()
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


class Fixed(nn.Module):
    """A pool behind a parameter that fixes the size of the images."""

    def __init__(self, pool: nn.Module, size: tuple[int, ...]) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(size))
        self.pool = pool

    def forward(self, x: Tensor) -> Any:
        return self.pool(x + self.positions)


@pytest.mark.parametrize(
    ("pool", "size", "operators"),
    [
        (nn.AdaptiveAvgPool2d(4), (8, 12), ["Add", "AveragePool"]),
        (nn.AdaptiveAvgPool2d((1, 3)), (8, 12), ["Add", "AveragePool"]),
        (nn.AdaptiveAvgPool2d((8, 12)), (8, 12), ["Add"]),
        (nn.AdaptiveMaxPool2d((2, None)), (8, 12), ["Add", "MaxPool"]),
        (nn.AdaptiveAvgPool1d(5), (10,), ["Add", "AveragePool"]),
        (nn.AdaptiveMaxPool3d((2, 3, 1)), (4, 3, 5), ["Add", "MaxPool"]),
    ],
    ids=str,
)
def test_equal_windows(pool: nn.Module, size: tuple[int, ...], operators: list[str], tmp_path: Path) -> None:
    """Pools that divide the image exactly are pools that every runtime has."""
    torch.manual_seed(0)
    model, x = Fixed(pool, size).eval(), torch.randn(2, 3, *size)
    path = deploy.export(model, x, tmp_path / "m.onnx", format="onnx").path
    assert [node.op_type for node in onnx.load(path).graph.node if node.op_type != "Identity"] == operators
    torch.testing.assert_close(deploy.load(path)(x), model(x))


@pytest.mark.parametrize(
    ("pool", "operator"),
    [(nn.AdaptiveAvgPool2d(1), "GlobalAveragePool"), (nn.AdaptiveMaxPool2d((1, 1)), "GlobalMaxPool")],
    ids=str,
)
def test_all_of_the_image(pool: nn.Module, operator: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), pool).eval()
    path = deploy.export(model, X, tmp_path / "m.onnx", format="onnx").path
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv", operator]
    for shape in SIZES:
        x = torch.randn(shape)
        torch.testing.assert_close(deploy.load(path)(x), model(x), rtol=1e-4, atol=1e-5)
