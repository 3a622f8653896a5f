"""Quantizable twin of the inverted residual block of MobileNetV2 and MobileNetV3."""

from torch import Tensor

from ...layers.inverted_residual import InvertedBottleneck, InvertedResidual
from .base import QuantizableLayer
from .observed import Addition

__all__ = ["QuantizableBottleneckAddition", "QuantizableInvertedResidual"]


class QuantizableBottleneckAddition(QuantizableLayer, InvertedBottleneck):
    """Observes the addition of an inverted bottleneck, if it has one."""

    def _add_observed_ops(self) -> None:
        if self.use_res_connect:
            self.skip_add = Addition()

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        return self.skip_add(branch, skip)


class QuantizableInvertedResidual(QuantizableBottleneckAddition, InvertedResidual):
    """:class:`InvertedResidual` whose addition is observed and whose convolutions fuse with norms and activations."""

    float_class = InvertedResidual
