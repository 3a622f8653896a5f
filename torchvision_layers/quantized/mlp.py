"""Quantizable twin of the multi-layer perceptron."""

from collections.abc import Sequence

import torch
from torch import nn

from .._utils.construct import LayerArgument
from ..layers.mlp import MLP
from ._twin import QuantizableLayer

__all__ = ["QuantizableMLP"]


class QuantizableMLP(QuantizableLayer, MLP):
    """:class:`MLP` whose projections fuse with the ReLU that follows them."""

    float_class = MLP

    def __init__(
        self,
        in_channels: int,
        hidden_channels: Sequence[int],
        norm_layer: LayerArgument | None = None,
        activation_layer: LayerArgument | None = nn.ReLU,
        inplace: bool | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            hidden_channels,
            norm_layer,
            activation_layer,
            inplace,
            bias,
            dropout,
            device=device,
            dtype=dtype,
        )
        self._complete()
