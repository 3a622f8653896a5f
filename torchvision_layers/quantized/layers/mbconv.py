"""Quantizable twins of the blocks of EfficientNet and EfficientNetV2."""

from ...layers.mbconv import FusedMBConv, MBConv
from .inverted_residual import QuantizableBottleneckAddition

__all__ = ["QuantizableFusedMBConv", "QuantizableMBConv"]


class QuantizableMBConv(QuantizableBottleneckAddition, MBConv):
    """:class:`MBConv` whose addition is observed and whose convolutions fuse with their norms and activations."""

    float_class = MBConv


class QuantizableFusedMBConv(QuantizableBottleneckAddition, FusedMBConv):
    """:class:`FusedMBConv` whose addition is observed and whose convolutions fuse with their norms and activations."""

    float_class = FusedMBConv
