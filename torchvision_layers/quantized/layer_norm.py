"""Quantizable twins of layer norm and layer scale: as a whole they run in float islands."""

import torch

from ..layers.layer_norm import LayerNorm2d, LayerScale
from ._twin import QuantizableLayer

__all__ = ["QuantizableLayerNorm2d", "QuantizableLayerScale"]


class QuantizableLayerNorm2d(QuantizableLayer, LayerNorm2d):
    """:class:`LayerNorm2d`, which runs in a float island."""

    float_class = LayerNorm2d

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_channels,
            eps,
            elementwise_affine,
            device=device,
            dtype=dtype,
        )
        self._complete()


class QuantizableLayerScale(QuantizableLayer, LayerScale):
    """:class:`LayerScale`, which runs in a float island."""

    float_class = LayerScale

    def __init__(
        self,
        dim: int,
        init_value: float = 1e-6,
        channels_dim: int = 1,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            init_value,
            channels_dim,
            device=device,
            dtype=dtype,
        )
        self._complete()
