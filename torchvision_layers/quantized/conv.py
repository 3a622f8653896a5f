"""Quantizable twins of convolution, normalization and activation in a row."""

import torch
from torch import nn

from .._utils.construct import LayerArgument
from ..layers.conv import Conv1dNormAct, Conv3dNormAct, ConvNormAct
from ._twin import QuantizableLayer

__all__ = ["QuantizableConv1dNormAct", "QuantizableConv3dNormAct", "QuantizableConvNormAct"]


class QuantizableConvNormAct(QuantizableLayer, ConvNormAct):
    """:class:`ConvNormAct` that fuses convolution, batch norm and ReLU or ReLU6 into one int8 kernel."""

    float_class = ConvNormAct

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        groups: int = 1,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.ReLU,
        dilation: int | tuple[int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
        *,
        conv_layer: LayerArgument = nn.Conv2d,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups,
            norm_layer,
            activation_layer,
            dilation,
            inplace,
            bias,
            conv_layer=conv_layer,
            device=device,
            dtype=dtype,
        )
        self._complete()


class QuantizableConv1dNormAct(QuantizableLayer, Conv1dNormAct):
    """:class:`Conv1dNormAct` that fuses as :class:`QuantizableConvNormAct` does."""

    float_class = Conv1dNormAct

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int] = 3,
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str | None = None,
        groups: int = 1,
        norm_layer: LayerArgument | None = nn.BatchNorm1d,
        activation_layer: LayerArgument | None = nn.ReLU,
        dilation: int | tuple[int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
        *,
        conv_layer: LayerArgument = nn.Conv1d,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups,
            norm_layer,
            activation_layer,
            dilation,
            inplace,
            bias,
            conv_layer=conv_layer,
            device=device,
            dtype=dtype,
        )
        self._complete()


class QuantizableConv3dNormAct(QuantizableLayer, Conv3dNormAct):
    """:class:`Conv3dNormAct` that fuses as :class:`QuantizableConvNormAct` does."""

    float_class = Conv3dNormAct

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int] = 3,
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] | str | None = None,
        groups: int = 1,
        norm_layer: LayerArgument | None = nn.BatchNorm3d,
        activation_layer: LayerArgument | None = nn.ReLU,
        dilation: int | tuple[int, int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
        *,
        conv_layer: LayerArgument = nn.Conv3d,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups,
            norm_layer,
            activation_layer,
            dilation,
            inplace,
            bias,
            conv_layer=conv_layer,
            device=device,
            dtype=dtype,
        )
        self._complete()
