"""Quantizable twin of linear layer, dropout and activation in a row."""

from ...layers.linear import LinearDropoutAct
from .base import QuantizableLayer

__all__ = ["QuantizableLinearDropoutAct"]


class QuantizableLinearDropoutAct(QuantizableLayer, LinearDropoutAct):
    """:class:`LinearDropoutAct` that fuses linear layer, batch norm and ReLU into one int8 kernel.

    The dropout between them is no obstacle: it is the identity in eval mode and commutes with ReLU in training.
    """

    float_class = LinearDropoutAct
