"""Quantizable twin of the convolution with a map of positions."""

from torch import Tensor, nn

from ..layers.positional_conv import PositionalConv2d, PositionMap
from ._observed import Addition
from ._twin import QuantizableLayer

__all__ = ["QuantizablePositionalConv2d"]


class QuantizablePositionalConv2d(QuantizableLayer, PositionalConv2d):
    """:class:`PositionalConv2d` whose addition is observed; the map is computed in a float island."""

    float_class = PositionalConv2d

    def __init__(self, conv: nn.Conv2d, position: PositionMap) -> None:
        super().__init__(conv, position)
        self._complete()

    def _add_functionals(self) -> None:
        self.position_add = Addition()

    def _add_position(self, output: Tensor, position: Tensor) -> Tensor:
        return self.position_add(output, position.expand(output.shape))
