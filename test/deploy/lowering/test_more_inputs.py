"""Inputs without dimensions, convolutions of one dimension, and callers that autocast."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers.testing._checks._quantization import decibels


class Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.conv(x) * factor


EXAMPLE = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)), torch.tensor(2.0)


def test_input_without_dimensions_is_lowered() -> None:
    model = Scaling().eval()
    lowered = deploy.lower(model, EXAMPLE)
    torch.testing.assert_close(lowered(*EXAMPLE), model(*EXAMPLE))
    int8 = quantized.quantize(model, [EXAMPLE], engine="pt2e")
    assert decibels(model(*EXAMPLE), int8(*EXAMPLE)) > 25


@pytest.mark.parametrize(("name", "format"), [("a.pt2", "pt2"), ("b.pt2", None), ("c.onnx", None)])
def test_input_without_dimensions_is_exported(name: str, format: str | None, tmp_path: Path) -> None:
    model = Scaling().eval()
    loaded = deploy.load(deploy.export(model, EXAMPLE, tmp_path / name, format=format).path)
    torch.testing.assert_close(loaded(*EXAMPLE), model(*EXAMPLE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh])
def test_activations_after_int8_convolutions_of_one_dimension(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 8, 3), activation(), nn.Conv1d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 20)
    int8 = quantized.quantize(model, [x], engine="pt2e")
    assert decibels(int8(x), deploy.lower(int8, x)(x)) > 40


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
def test_export_does_not_autocast(name: str, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), EXAMPLE[0]
    with torch.autocast("cpu", torch.bfloat16):
        file = deploy.export(model, x, tmp_path / name).path
    torch.testing.assert_close(deploy.load(file)(x), model(x), rtol=1e-4, atol=1e-5)
