"""Quantizable twin of the ConvNeXt block."""

from torch import Tensor, nn

from ...layers.convnext import ConvNeXtBlock
from .base import QuantizableLayer
from .observed import Addition, DeQuantStub, QuantStub

__all__ = ["QuantizableConvNeXtBlock"]


class QuantizableConvNeXtBlock(QuantizableLayer, ConvNeXtBlock):
    """:class:`ConvNeXtBlock` whose addition is observed; norm, GELU and layer scale are float fallbacks."""

    float_class = ConvNeXtBlock

    def _add_observed_ops(self) -> None:
        if self.layer_scale is not None:  # None once it is folded
            self.scale_entry = DeQuantStub()
            self.scale_exit = QuantStub()
        self.skip_add = Addition()

    def folded(self) -> nn.Module:
        """The same twin with the scale folded into its last linear layer, and without the stubs around the scale."""
        block = super().folded()
        if block.layer_scale is None and hasattr(block, "scale_entry"):
            del block.scale_entry, block.scale_exit
        return block

    def _scale(self, branch: Tensor) -> Tensor:
        if self.layer_scale is None:
            return branch
        return self.scale_exit(self.layer_scale * self.scale_entry(branch))

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        return self.skip_add(branch, skip)
