"""Quantizable twins of the building blocks of EfficientNet and EfficientNetV2."""

import torch
from torch import nn

from .._utils.construct import LayerArgument
from ..layers.mbconv import FusedMBConv, MBConv
from ..layers.squeeze_excitation import SqueezeExcitation
from .inverted_residual import QuantizableBottleneckAddition

__all__ = ["QuantizableFusedMBConv", "QuantizableMBConv"]


class QuantizableMBConv(QuantizableBottleneckAddition, MBConv):
    """:class:`MBConv` whose addition is observed and whose convolutions fuse with what follows them."""

    float_class = MBConv

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: float = 6,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.SiLU,
        *,
        se_layer: LayerArgument | None = SqueezeExcitation,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            expand_ratio,
            norm_layer,
            activation_layer,
            se_layer=se_layer,
            conv_layer=conv_layer,
            stochastic_depth=stochastic_depth,
            device=device,
            dtype=dtype,
        )
        self._complete()


class QuantizableFusedMBConv(QuantizableBottleneckAddition, FusedMBConv):
    """:class:`FusedMBConv` whose addition is observed and whose convolutions fuse with what follows them."""

    float_class = FusedMBConv

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: float = 4,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.SiLU,
        *,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            expand_ratio,
            norm_layer,
            activation_layer,
            conv_layer=conv_layer,
            stochastic_depth=stochastic_depth,
            device=device,
            dtype=dtype,
        )
        self._complete()
