"""GlobalResponseNorm: what ConvNeXt V2 says of it, and the block around it."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn


def randomized(layer: tnn.GlobalResponseNorm) -> tnn.GlobalResponseNorm:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def test_untrained_layer_is_the_identity() -> None:
    """Algorithm 1: gamma and beta are zero at first."""
    x = torch.randn(2, 5, 6, 8)
    assert torch.equal(tnn.GlobalResponseNorm(8)(x), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_places_of_the_channels_are_equal(layout: torch.memory_format) -> None:
    last, x = randomized(tnn.GlobalResponseNorm(8)), torch.randn(2, 8, 5, 6).contiguous(memory_format=layout)
    first = tnn.GlobalResponseNorm(8, channels_dim=1)
    first.load_state_dict(last.state_dict())
    torch.testing.assert_close(first(x), last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    assert first(x).is_contiguous(memory_format=layout)


def test_scale_of_the_input_passes_through() -> None:
    """Responses are relative to those of the other channels, so the gain does not depend on the scale."""
    layer = randomized(tnn.GlobalResponseNorm(8)).double()
    nn.init.zeros_(layer.bias)
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(1000 * x), 1000 * layer(x), rtol=1e-4, atol=0)


def test_channels_with_larger_responses_get_larger_gains() -> None:
    """Section 3.3: the normalization makes channels compete."""
    layer = tnn.GlobalResponseNorm(3, channels_dim=1)
    nn.init.ones_(layer.weight)
    x = torch.ones(1, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    gains = (layer(x) / x)[0, :, 0, 0]
    torch.testing.assert_close(gains, 1 + torch.tensor([1.0, 2.0, 3.0]) / 2)


def test_silent_image_has_finite_gradients() -> None:
    layer, x = randomized(tnn.GlobalResponseNorm(4)), torch.zeros(2, 3, 3, 4, requires_grad=True)
    output = layer(x)
    assert torch.equal(output, layer.bias.expand_as(output))
    output.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_layer_of_timm() -> None:
    timm = pytest.importorskip("timm.layers.grn")
    ours, x = randomized(tnn.GlobalResponseNorm(8)), torch.randn(2, 5, 6, 8)
    theirs = timm.GlobalResponseNorm(8)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x))


def test_block_of_convnext_v2() -> None:
    """Section 4: the norm follows GELU in the MLP, and there is no layer scale."""
    block = tnn.ConvNeXtBlock(8, hidden_norm_layer=tnn.GlobalResponseNorm, layer_scale=None)
    assert "layer_scale" not in block.state_dict()
    norm = block.block[5]
    assert isinstance(norm, tnn.GlobalResponseNorm)
    assert norm.dim == 32
    randomized(norm)
    x = torch.randn(2, 8, 9, 9)

    def forward(x: Tensor) -> Tensor:
        y = block.block[2](block.block[0](x).permute(0, 2, 3, 1))
        y = nn.functional.gelu(block.block[3](y))
        response = y.square().sum((1, 2), keepdim=True).sqrt()
        y = norm.weight * (y * response / (response.mean(-1, keepdim=True) + 1e-6)) + norm.bias + y
        return x + block.block[6](y).permute(0, 3, 1, 2)

    torch.testing.assert_close(block(x), forward(x))
    torch.testing.assert_close(deploy.fold(block.eval(), x)(x), forward(x))


def test_layer_scale_folds_behind_a_hidden_norm() -> None:
    block, x = tnn.ConvNeXtBlock(8, hidden_norm_layer=nn.LayerNorm, layer_scale=0.5).eval(), torch.randn(2, 8, 9, 9)
    folded = deploy.fold(block, x)
    assert folded.layer_scale is None
    torch.testing.assert_close(folded(x), block(x))
