"""Quantizable twin of the multi-layer perceptron."""

from ...layers.mlp import MLP
from .base import QuantizableLayer

__all__ = ["QuantizableMLP"]


class QuantizableMLP(QuantizableLayer, MLP):
    """:class:`MLP` whose linear layers fuse with the ReLU after them."""

    float_class = MLP
