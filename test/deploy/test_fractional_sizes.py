"""Sizes that a forward computes by fractions: files hold them for the images of the example only, with a warning."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized


class Patches(nn.Module):
    """Resizes features to whole patches, as MobileViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        sizes = [math.ceil(size / 2) * 2 for size in y.shape[-2:]]
        if sizes != list(y.shape[-2:]):
            y = F.interpolate(y, sizes, mode="bilinear")
        return self.point(y)


MESSAGE = "the file takes images of 16 x 12 only: .* computes sizes in a way that a file cannot store"


@pytest.fixture
def example() -> Tensor:
    return torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options"),
    [("model.onnx", {}), ("model.pt2", {"lowered": False}), ("model.pt2", {"lowered": True}), ("model.xml", {})],
)
def test_float_files(name: str, options: dict[str, Any], example: Tensor, tmp_path: Path) -> None:
    if name.endswith(".xml"):
        pytest.importorskip("openvino")
    torch.manual_seed(0)
    model = Patches().eval()
    with pytest.warns(UserWarning, match=MESSAGE):
        file = deploy.export(model, example, tmp_path / name, **options)
    loaded = deploy.load(file.path)
    for images in (example, example[:1]):
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="must have size 16 in dimension 2"):
        loaded(torch.randn(2, 3, 20, 12))


def test_int8_files(example: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    int8 = quantized.quantize(Patches().eval(), [example], engine="pt2e", backend="onnxruntime")
    with pytest.warns(UserWarning, match=MESSAGE):
        file = deploy.export(int8, example, tmp_path / "model.onnx", format="onnx-qdq")
    # Kernels of the file may round a value to the next step.
    scale = float(int8(example).abs().max())
    assert float((deploy.load(file.path)(example) - int8(example)).abs().max()) < 0.02 * scale


@pytest.mark.parametrize("is_int8", [False, True])
def test_scale_factor(is_int8: bool, example: Tensor, tmp_path: Path) -> None:
    """The check appears only when the lowered program is exported."""

    class Upsampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.point = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.point(F.interpolate(self.conv(x), scale_factor=1.5, mode="bicubic"))

    torch.manual_seed(0)
    model: nn.Module = Upsampled().eval()
    if is_int8:
        model = quantized.quantize(model, [example], engine="pt2e", backend="x86")
    with pytest.warns(UserWarning, match=MESSAGE):
        loaded = deploy.load(deploy.export(model, example, tmp_path / "model.pt2", lowered=True).path)
    torch.testing.assert_close(loaded(example), model(example), rtol=0, atol=1e-4)


def test_lowered_models_take_sizes_of_both_branches(example: Tensor) -> None:
    torch.manual_seed(0)
    model = Patches().eval()
    lowered = deploy.lower(model, example)
    for images in (example, torch.randn(1, 3, 24, 20), torch.randn(1, 3, 22, 17), torch.randn(2, 3, 29, 33)):
        torch.testing.assert_close(lowered(images), model(images), rtol=0, atol=1e-5)
