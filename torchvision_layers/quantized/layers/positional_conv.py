"""Quantizable twin of the convolution with a position map."""

from torch import Tensor

from ...layers.positional_conv import PositionalConv2d
from .base import QuantizableLayer
from .observed import Addition

__all__ = ["QuantizablePositionalConv2d"]


class QuantizablePositionalConv2d(QuantizableLayer, PositionalConv2d):
    """:class:`PositionalConv2d` whose addition is observed; the map is computed in a float fallback."""

    float_class = PositionalConv2d

    def _add_observed_ops(self) -> None:
        self.position_add = Addition()

    def _add_position(self, output: Tensor, position: Tensor) -> Tensor:
        return self.position_add(output, position.expand(output.shape))
