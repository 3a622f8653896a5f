"""Attention in ONNX files, with any number of dimensions in front of tokens and features."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy


class Attention(nn.Module):
    """Attention within windows of 4 x 4 pixels, as in Twins: with ``rank`` 5, windows are a dimension of their own."""

    def __init__(self, rank: int, has_mask: bool) -> None:
        super().__init__()
        self.conv, self.rank = nn.Conv2d(3, 24, 1), rank
        self.register_buffer("mask", torch.randn(16, 16) if has_mask else None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        n, _, h, w = y.shape
        y = y.view(n, 3, 8, h // 4, 4, w // 4, 4).permute(1, 0, 3, 5, 4, 6, 2).reshape(3, n, -1, 16, 8)
        if self.rank == 5:
            y = y.unflatten(-1, (2, 4)).transpose(3, 4)
        elif self.rank == 3:
            y = y.flatten(1, 2)
        query, key, value = y
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_dimensions(rank: int, has_mask: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Attention(rank, has_mask).eval(), torch.randn(2, 3, 8, 8)
    loaded = deploy.load(deploy.export(model, x, tmp_path / "model.onnx").path)
    for images in (x, torch.randn(3, 3, 12, 8)):
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-5)
