"""Weights in the layouts that oneDNN prefers on this CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["PACKS", "pack_conv", "pack_linear", "pack_pixels"]


def pack_conv(
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_shape: Sequence[int] | None = None,
) -> Tensor:
    """The weight of a convolution; that of a 1-d one is for images with a height of 1."""
    images = weight.unsqueeze(2) if weight.dim() == 3 else weight
    return torch.ops.mkldnn._reorder_convolution_weight(images, padding, stride, dilation, groups, input_shape)


def pack_linear(weight: Tensor, rows: int | None = None) -> Tensor:
    """The weight of a linear layer, for about so many inputs at a time."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def pack_pixels(weight: Tensor) -> Tensor:
    """The transposed matrix of a convolution with kernels of one pixel."""
    return weight.flatten(1).t().contiguous()


PACKS = (pack_conv, pack_linear, pack_pixels)
