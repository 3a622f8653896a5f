"""Quantizable twin of the depthwise separable convolution."""

from ...layers.depthwise import DepthwiseSeparableConv
from .base import QuantizableLayer

__all__ = ["QuantizableDepthwiseSeparableConv"]


class QuantizableDepthwiseSeparableConv(QuantizableLayer, DepthwiseSeparableConv):
    """:class:`DepthwiseSeparableConv` whose convolutions fuse with the norms and activations after them."""

    float_class = DepthwiseSeparableConv
