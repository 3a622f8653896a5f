"""Quantizable twins of the two residual blocks of ResNet."""

from torch import Tensor

from ...layers.residual import BasicBlock, Bottleneck, _ResidualBlock
from .base import QuantizableLayer
from .observed import Addition

__all__ = ["QuantizableBasicBlock", "QuantizableBottleneck"]


class _QuantizableResidual(QuantizableLayer, _ResidualBlock):
    """Observes the addition, which fuses with the ReLU after it."""

    def _add_observed_ops(self) -> None:
        self.skip_add = Addition()

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        return self.act(self.skip_add(branch, skip))


class QuantizableBasicBlock(_QuantizableResidual, BasicBlock):
    """:class:`BasicBlock` whose convolutions fuse with their norms and activations, and the addition with its ReLU."""

    float_class = BasicBlock


class QuantizableBottleneck(_QuantizableResidual, Bottleneck):
    """:class:`Bottleneck` whose convolutions fuse with their norms and activations, and the addition with its ReLU."""

    float_class = Bottleneck
