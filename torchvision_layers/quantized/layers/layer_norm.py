"""Quantizable twins of layer norm and layer scale, which run as float fallbacks."""

from ...layers.layer_norm import LayerNorm2d, LayerScale
from .base import QuantizableLayer

__all__ = ["QuantizableLayerNorm2d", "QuantizableLayerScale"]


class QuantizableLayerNorm2d(QuantizableLayer, LayerNorm2d):
    """:class:`LayerNorm2d`, which runs as a float fallback."""

    float_class = LayerNorm2d


class QuantizableLayerScale(QuantizableLayer, LayerScale):
    """:class:`LayerScale`, which runs as a float fallback."""

    float_class = LayerScale
