"""Quantizable twin of the building block of ConvNeXt."""

import torch
from torch import Tensor, nn

from .._utils.construct import LayerArgument
from ..layers.convnext import ConvNeXtBlock
from ._observed import Addition, DeQuantStub, QuantStub
from ._twin import QuantizableLayer

__all__ = ["QuantizableConvNeXtBlock"]


class QuantizableConvNeXtBlock(QuantizableLayer, ConvNeXtBlock):
    """:class:`ConvNeXtBlock` whose addition is observed; norm, GELU and layer scale run in float islands."""

    float_class = ConvNeXtBlock

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int = 7,
        expansion: int = 4,
        layer_scale: float = 1e-6,
        stochastic_depth: float = 0.0,
        norm_layer: LayerArgument | None = None,
        activation_layer: LayerArgument | None = nn.GELU,
        conv_layer: LayerArgument = nn.Conv2d,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            kernel_size=kernel_size,
            expansion=expansion,
            layer_scale=layer_scale,
            stochastic_depth=stochastic_depth,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            conv_layer=conv_layer,
            device=device,
            dtype=dtype,
        )
        self._complete()

    def _add_functionals(self) -> None:
        if self.layer_scale is not None:  # it is not folded
            self.scale_entry = DeQuantStub()
            self.scale_exit = QuantStub()
        self.skip_add = Addition()

    def folded(self) -> nn.Module:
        """The same twin, its scale in the weights of its last projection, without what observed it."""
        block = super().folded()
        if block.layer_scale is None and hasattr(block, "scale_entry"):
            del block.scale_entry, block.scale_exit
        return block

    def _scale(self, branch: Tensor) -> Tensor:
        return branch if self.layer_scale is None else self.scale_exit(self.layer_scale * self.scale_entry(branch))

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        return self.skip_add(branch, skip)
