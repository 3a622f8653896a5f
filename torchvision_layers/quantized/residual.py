"""Quantizable twins of the two building blocks of residual networks."""

import torch
from torch import Tensor, nn

from .._utils.construct import LayerArgument
from ..layers.residual import BasicBlock, Bottleneck, _ResidualBlock
from ._observed import Addition
from ._twin import QuantizableLayer

__all__ = ["QuantizableBasicBlock", "QuantizableBottleneck"]


class _QuantizableResidual(QuantizableLayer, _ResidualBlock):
    """Observes the addition, which fuses with the ReLU that follows."""

    def _add_functionals(self) -> None:
        self.skip_add = Addition()

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        return self.act(self.skip_add(branch, skip))


class QuantizableBasicBlock(_QuantizableResidual, BasicBlock):
    """:class:`BasicBlock` whose convolutions fuse with what follows them, and the addition with its ReLU."""

    float_class = BasicBlock

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: LayerArgument | None = None,
        *,
        activation_layer: LayerArgument | None = nn.ReLU,
        se_layer: LayerArgument | None = None,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            inplanes,
            planes,
            stride,
            downsample,
            groups,
            base_width,
            dilation,
            norm_layer,
            activation_layer=activation_layer,
            se_layer=se_layer,
            conv_layer=conv_layer,
            stochastic_depth=stochastic_depth,
            device=device,
            dtype=dtype,
        )
        self._complete()


class QuantizableBottleneck(_QuantizableResidual, Bottleneck):
    """:class:`Bottleneck` whose convolutions fuse with what follows them, and the addition with its ReLU."""

    float_class = Bottleneck

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: LayerArgument | None = None,
        *,
        activation_layer: LayerArgument | None = nn.ReLU,
        se_layer: LayerArgument | None = None,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            inplanes,
            planes,
            stride,
            downsample,
            groups,
            base_width,
            dilation,
            norm_layer,
            activation_layer=activation_layer,
            se_layer=se_layer,
            conv_layer=conv_layer,
            stochastic_depth=stochastic_depth,
            device=device,
            dtype=dtype,
        )
        self._complete()
