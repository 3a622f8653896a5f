"""Position embeddings against the code of DETR, and the claims of their papers."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torchvision_layers.experimental import nn as enn


def test_learned_embedding_is_exact_on_the_trained_grid() -> None:
    layer, x = enn.PositionEmbedding2d(4, (5, 7)), torch.randn(2, 4, 5, 7)
    assert torch.equal(layer(x), x + layer.weight)
    resampled = F.interpolate(layer.weight, (5, 7), mode="bicubic")  # as in graphs for all sizes
    assert torch.equal(resampled, layer.weight)


def test_learned_embedding_keeps_its_meaning_on_other_grids() -> None:
    """Section 3.2 of arXiv 2010.11929: it is interpolated according to the place in the image."""
    layer = enn.PositionEmbedding2d(2, 16)
    with torch.no_grad():
        places = (torch.arange(16) + 0.5) / 16
        layer.weight[0, 0], layer.weight[0, 1] = places[:, None], 0.25
    embedding = layer(torch.zeros(1, 2, 24, 40))[0]
    expected = (torch.arange(24) + 0.5) / 24
    torch.testing.assert_close(embedding[0, 3:-3], expected[3:-3, None].expand(-1, 40), rtol=0, atol=5e-3)
    torch.testing.assert_close(embedding[1], torch.full((24, 40), 0.25))


def detr(mask: Tensor, features: int, temperature: float = 10000.0, normalize: bool = True) -> Tensor:
    """``PositionEmbeddingSine`` of the code of arXiv 2005.12872."""
    not_mask = ~mask
    y_embed, x_embed = not_mask.cumsum(1, dtype=torch.float32), not_mask.cumsum(2, dtype=torch.float32)
    if normalize:
        y_embed = y_embed / (y_embed[:, -1:, :] + 1e-6) * 2 * math.pi
        x_embed = x_embed / (x_embed[:, :, -1:] + 1e-6) * 2 * math.pi
    dim_t = torch.arange(features, dtype=torch.float32)
    dim_t = temperature ** (2 * (dim_t // 2) / features)
    pos_x, pos_y = x_embed[:, :, :, None] / dim_t, y_embed[:, :, :, None] / dim_t
    pos_x, pos_y = (
        torch.stack((pos[:, :, :, 0::2].sin(), pos[:, :, :, 1::2].cos()), dim=4).flatten(3) for pos in (pos_x, pos_y)
    )
    return torch.cat((pos_y, pos_x), dim=3).permute(0, 3, 1, 2)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("is_masked", [True, False])
def test_sine_embedding_equals_detr(normalize: bool, is_masked: bool) -> None:
    mask = torch.zeros(3, 9, 6, dtype=torch.bool)
    if is_masked:
        mask[1, 5:], mask[1, :, 4:], mask[2, :, 1:] = True, True, True
    x = torch.randn(3, 16, 9, 6)
    layer = enn.SinePositionEmbedding2d(16, normalize=normalize)
    expected = x + detr(mask, 8, normalize=normalize)
    torch.testing.assert_close(layer(x, mask), expected, rtol=1e-6, atol=1e-6)
    if not is_masked:
        torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_padding_does_not_change_the_embedding_of_an_image() -> None:
    layer, mask = enn.SinePositionEmbedding2d(8), torch.ones(1, 9, 11, dtype=torch.bool)
    mask[:, :6, :5] = False
    padded = layer(torch.zeros(1, 8, 9, 11), mask)
    torch.testing.assert_close(padded[..., :6, :5], layer(torch.zeros(1, 8, 6, 5)))


def test_an_image_that_is_all_padding_stays_finite() -> None:
    mask = torch.ones(1, 3, 4, dtype=torch.bool)
    assert enn.SinePositionEmbedding2d(8)(torch.zeros(1, 8, 3, 4), mask).isfinite().all()


def test_sine_embedding_of_a_shifted_position_is_a_rotation() -> None:
    """Section 3.5 of arXiv 1706.03762: for a fixed offset it is a linear function of the embedding."""
    embedding = enn.SinePositionEmbedding2d(8, normalize=False)(torch.zeros(1, 8, 12, 3, dtype=torch.float64))
    pairs = embedding[0, :4, :, 0].view(2, 2, 12)
    for k, period in enumerate((1.0, 10000.0 ** (2 / 4))):
        angle = torch.tensor(5 / period, dtype=torch.float64)
        rotation = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()]).view(2, 2)
        torch.testing.assert_close(rotation @ pairs[k, :, :-5], pairs[k, :, 5:])


def test_half_precision_counts_positions_exactly() -> None:
    x = torch.zeros(1, 8, 2, 600)
    layer = enn.SinePositionEmbedding2d(8, normalize=False)
    torch.testing.assert_close(layer(x.bfloat16()).float(), layer(x), rtol=0, atol=4e-3)


def test_wrong_masks() -> None:
    layer, x = enn.SinePositionEmbedding2d(8), torch.zeros(2, 8, 3, 4)
    with pytest.raises(TypeError, match=r"mask must be a boolean tensor, got torch\.float32"):
        layer(x, torch.zeros(2, 3, 4))
    with pytest.raises(
        ValueError, match=r"mask must have the batch, height and width of input, \[2, 3, 4\], got \[2, 4, 3\]"
    ):
        layer(x, torch.zeros(2, 4, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask must be a boolean tensor, got list"):
        layer(x, [[True]])


def test_embeddings_state_their_channels() -> None:
    for layer in (enn.PositionEmbedding2d(8, 4), enn.SinePositionEmbedding2d(8)):
        assert (layer.out_channels, layer.reduction) == (8, 1)
