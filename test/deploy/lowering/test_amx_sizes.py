"""Convolutions of lowered programs run in float32 where oneDNN's kernels on AMX are wrong."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers._utils.amx import Geometry
from torchvision_layers.deploy.lowering import amx_sizes
from torchvision_layers.testing._checks._quantization import decibels


class Sum(nn.Module):
    """Adds a tensor of the shape of the result of a convolution, or one that is broadcast."""

    def __init__(self, has_relu: bool, broadcasts: bool) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, stride=1)
        self.has_relu, self.broadcasts = has_relu, broadcasts

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        other = x.mean((2, 3), keepdim=True) if self.broadcasts else x
        x = self.conv(x) + other
        return x.relu() if self.has_relu else x


MODELS = {
    "conv": nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.Conv2d(8, 6, (3, 1), groups=2)),
    "relu": nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, dilation=2), nn.ReLU6()),
    "hardswish": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 6, 3), nn.SiLU()),
    "sum": Sum(False, False),
    "sum, relu": Sum(True, False),
    "sum, broadcast": Sum(True, True),
    "1d": nn.Sequential(nn.Conv1d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv1d(8, 6, 3, padding=1)),
    "3d": nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 6, (1, 3, 3))),
}


@pytest.fixture
def geometries(monkeypatch: pytest.MonkeyPatch) -> list[Geometry]:
    """The convolutions that a program looks up, none of them right."""
    seen: list[Geometry] = []

    def is_right(geometry: Geometry, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        seen.append(geometry)
        assert len(shape) == len(geometry.kernel) + 2
        return False

    monkeypatch.setattr(amx_sizes, "uses_amx", lambda: True)
    monkeypatch.setattr(amx_sizes, "is_right", is_right)
    return seen


def _input(name: str) -> Tensor:
    dims = {"1d": (14,), "3d": (4, 10, 9)}.get(name, (14, 13))
    return torch.randn(2, 3, *dims, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_int8_in_float32(name: str, geometries: list[Geometry]) -> None:
    model, x = MODELS[name].eval(), _input(name)
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="x86")
    output = deploy.lower(int8, x)(x)
    assert decibels(int8(x), output) > 40
    assert decibels(model(x), output) > 28
    convs = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    expected = {
        (m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, m.groups) for m in convs
    }
    assert {tuple(geometry) for geometry in geometries} == expected


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_in_float32(name: str, geometries: list[Geometry]) -> None:
    model, x = MODELS[name].eval(), _input(name)
    lowered = deploy.lower(model, x, dtype=torch.bfloat16)
    assert lowered(x).dtype == torch.float32
    assert decibels(model(x), lowered(x)) > 35
    assert len(geometries) >= 2


def test_float32_looks_nothing_up(geometries: list[Geometry]) -> None:
    x = _input("conv")
    assert torch.allclose(deploy.lower(MODELS["conv"].eval(), x)(x), MODELS["conv"](x), atol=1e-5)
    assert not geometries
