"""Weights in the layouts that oneDNN prefers on this CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "float_scales",
    "pack_conv",
    "pack_linear",
    "pack_quantized_conv",
    "pack_quantized_linear",
]


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


def float_scales(scales: Tensor) -> Tensor:
    """The scales of a quantized weight as oneDNN takes them."""
    return scales.float()


def pack_quantized_conv(
    weight: Tensor,
    scales: Tensor,
    input_scale: float,
    input_zero_point: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_shape: Sequence[int] | None = None,
) -> Tensor:
    """The weight of a convolution in int8."""
    return torch.ops.onednn.qconv_prepack(
        weight, scales, input_scale, input_zero_point, stride, padding, dilation, groups, input_shape
    )


def pack_quantized_linear(weight: Tensor, input_shape: Sequence[int] | None = None) -> Tensor:
    """The weight of a linear layer in int8."""
    # oneDNN ignores the strides of the weight.
    return torch.ops.onednn.qlinear_prepack(weight.contiguous(), input_shape)
