"""Quantizable twin of squeeze-excitation."""

from torch import Tensor, nn

from ...layers.squeeze_excitation import SqueezeExcitation
from .base import QuantizableLayer
from .observed import Multiplication

__all__ = ["QuantizableSqueezeExcitation"]


class QuantizableSqueezeExcitation(QuantizableLayer, SqueezeExcitation):
    """:class:`SqueezeExcitation` whose product is observed and whose first convolution fuses with its activation."""

    float_class = SqueezeExcitation

    def _add_observed_ops(self) -> None:
        # This class has an int8 kernel; the instance stays the same because it may have hooks.
        self.avgpool.__class__ = nn.AdaptiveAvgPool2d  # type: ignore[assignment]
        self.avgpool.output_size = 1
        self.skip_mul = Multiplication()

    def _gated(self, input: Tensor, scale: Tensor) -> Tensor:
        return self.skip_mul(scale, input)
