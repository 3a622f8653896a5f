"""Quantizable twin of the building block of MobileNetV2 and MobileNetV3."""

import torch
from torch import Tensor, nn

from .._utils.construct import LayerArgument
from ..layers.inverted_residual import InvertedBottleneck, InvertedResidual
from ._observed import Addition
from ._twin import QuantizableLayer

__all__ = ["QuantizableBottleneckAddition", "QuantizableInvertedResidual"]


class QuantizableBottleneckAddition(QuantizableLayer, InvertedBottleneck):
    """Observes the addition of a block that expands and projects, where it has one."""

    def _add_functionals(self) -> None:
        if self.use_res_connect:
            self.skip_add = Addition()

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        return self.skip_add(branch, skip)


class QuantizableInvertedResidual(QuantizableBottleneckAddition, InvertedResidual):
    """:class:`InvertedResidual` whose addition is observed and whose convolutions fuse with what follows them."""

    float_class = InvertedResidual

    def __init__(
        self,
        inp: int,
        oup: int,
        stride: int,
        expand_ratio: float,
        norm_layer: LayerArgument | None = None,
        *,
        kernel_size: int = 3,
        dilation: int = 1,
        activation_layer: LayerArgument | None = nn.ReLU6,
        se_layer: LayerArgument | None = None,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            inp,
            oup,
            stride,
            expand_ratio,
            norm_layer,
            kernel_size=kernel_size,
            dilation=dilation,
            activation_layer=activation_layer,
            se_layer=se_layer,
            conv_layer=conv_layer,
            stochastic_depth=stochastic_depth,
            device=device,
            dtype=dtype,
        )
        self._complete()
