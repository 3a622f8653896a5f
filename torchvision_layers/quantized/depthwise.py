"""Quantizable twin of the factored convolution."""

import torch
from torch import nn

from .._utils.construct import LayerArgument
from ..layers.depthwise import DepthwiseSeparableConv
from ._twin import QuantizableLayer

__all__ = ["QuantizableDepthwiseSeparableConv"]


class QuantizableDepthwiseSeparableConv(QuantizableLayer, DepthwiseSeparableConv):
    """:class:`DepthwiseSeparableConv` whose convolutions fuse with what follows them."""

    float_class = DepthwiseSeparableConv

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        dilation: int | tuple[int, int] = 1,
        depth_multiplier: int = 1,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.ReLU,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            depth_multiplier,
            norm_layer,
            activation_layer,
            device=device,
            dtype=dtype,
        )
        self._complete()
