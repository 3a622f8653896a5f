"""Quantizable twin of channel attention."""

import torch
from torch import Tensor, nn

from .._utils.construct import LayerArgument
from ..layers.squeeze_excitation import SqueezeExcitation
from ._observed import Multiplication
from ._twin import QuantizableLayer

__all__ = ["QuantizableSqueezeExcitation"]


class QuantizableSqueezeExcitation(QuantizableLayer, SqueezeExcitation):
    """:class:`SqueezeExcitation` whose product is observed and whose first projection fuses with its activation."""

    float_class = SqueezeExcitation

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: LayerArgument = nn.ReLU,
        scale_activation: LayerArgument = nn.Sigmoid,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_channels,
            squeeze_channels,
            activation,
            scale_activation,
            device=device,
            dtype=dtype,
        )
        self._complete()

    def _add_functionals(self) -> None:
        # The one with a kernel for int8; the same instance, for it may carry hooks.
        self.avgpool.__class__ = nn.AdaptiveAvgPool2d  # type: ignore[assignment]
        self.avgpool.output_size = 1
        self.skip_mul = Multiplication()

    def _gated(self, input: Tensor, scale: Tensor) -> Tensor:
        return self.skip_mul(scale, input)
