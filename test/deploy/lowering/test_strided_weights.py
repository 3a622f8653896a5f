"""Weights that are not contiguous, as orthogonal parametrizations and transposed checkpoints leave them."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized


@pytest.mark.parametrize("weight", [torch.randn(8, 5).t(), torch.randn(5, 16)[:, ::2]], ids=["transposed", "sliced"])
def test_int8_linear_layers(weight: Tensor) -> None:
    linear = nn.Linear(8, 5)
    linear.weight = nn.Parameter(weight)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()
    x = torch.randn(4, 3, 8, 8)
    int8 = quantized.quantize(model, [x], engine="pt2e")
    expected = model(x).detach()
    assert (deploy.lower(int8, x)(x) - expected).abs().max() < 0.03 * expected.abs().max()


def test_onednn_ignores_strides() -> None:
    """If this fails, ``pack_quantized_linear`` need not copy weights."""
    weight = torch.randint(-127, 128, (8, 5), dtype=torch.int8).t()
    x, scales, zeros = torch.full((1, 8), 9, dtype=torch.uint8), torch.ones(5), torch.zeros(5, dtype=torch.long)
    layer = (x, 1.0, 0, torch.ops.onednn.qlinear_prepack(weight, None), scales, zeros, None)
    output = torch.ops.onednn.qlinear_pointwise.default(*layer, 1.0, 0, torch.float32, "none", [], "")
    assert (output - x.float() @ weight.t().float()).abs().max() > 1
