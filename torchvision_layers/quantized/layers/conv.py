"""Quantizable twins of convolution, normalization and activation in a row."""

from ...layers.conv import Conv1dNormAct, Conv3dNormAct, ConvNormAct
from .base import QuantizableLayer

__all__ = ["QuantizableConv1dNormAct", "QuantizableConv3dNormAct", "QuantizableConvNormAct"]


class QuantizableConvNormAct(QuantizableLayer, ConvNormAct):
    """:class:`ConvNormAct` that fuses convolution, batch norm and ReLU or ReLU6 into one int8 kernel."""

    float_class = ConvNormAct


class QuantizableConv1dNormAct(QuantizableLayer, Conv1dNormAct):
    """:class:`Conv1dNormAct` that fuses like :class:`QuantizableConvNormAct`."""

    float_class = Conv1dNormAct


class QuantizableConv3dNormAct(QuantizableLayer, Conv3dNormAct):
    """:class:`Conv3dNormAct` that fuses like :class:`QuantizableConvNormAct`."""

    float_class = Conv3dNormAct
