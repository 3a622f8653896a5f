"""Quantizable twin of the fully connected projection."""

import torch
from torch import nn

from .._utils.construct import LayerArgument
from ..layers.linear import LinearDropoutAct
from ._twin import QuantizableLayer

__all__ = ["QuantizableLinearDropoutAct"]


class QuantizableLinearDropoutAct(QuantizableLayer, LinearDropoutAct):
    """:class:`LinearDropoutAct` that fuses projection, batch norm and ReLU into one int8 kernel.

    Dropout stands between them and does not hinder: in eval it is the identity, in training it commutes with ReLU.
    """

    float_class = LinearDropoutAct

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dropout: float = 0.0,
        activation_layer: LayerArgument | None = nn.ReLU,
        inplace: bool | None = None,
        *,
        norm_layer: LayerArgument | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            dropout,
            activation_layer,
            inplace,
            norm_layer=norm_layer,
            device=device,
            dtype=dtype,
        )
        self._complete()
