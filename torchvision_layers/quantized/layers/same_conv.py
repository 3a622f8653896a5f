"""Quantizable twin of the convolution with TensorFlow's padding."""

from typing import Any

from torch import Tensor, nn

from ..._utils.checks import check_input
from ..._utils.plain.keys import hide_name
from ..._utils.plain.padding import SamePadding, constant_same_padding
from ...layers.same_conv import Conv2dSame
from .base import QuantizableLayer

__all__ = ["QuantizableConv2dSame"]


class QuantizableConv2dSame(QuantizableLayer, Conv2dSame):
    """:class:`Conv2dSame` as padding and a convolution, which fuses with the norm and the activation after it."""

    float_class = Conv2dSame
    takes_int8 = True
    __jit_unused_properties__ = ("weight", "bias")

    def _add_observed_ops(self) -> None:
        weight, bias = self.weight, self.bias
        sizes: dict[str, Any] = {name: getattr(self, name) for name in ("kernel_size", "stride", "dilation")}
        padding = constant_same_padding(*map(list, sizes.values()))
        self.pad = nn.Identity() if padding else SamePadding(**sizes)
        sizes |= {"padding": tuple(padding) or 0, "groups": self.groups, "bias": bias is not None}
        conv = nn.Conv2d(self.in_channels, self.out_channels, **sizes, device="meta")
        del self.weight, self.bias
        conv.weight, conv.bias = weight, bias
        self.conv = conv.train(self.training)
        hide_name(self, "conv")

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels, needs_pixels=True)
        return self.conv(self.pad(input))

    # Initialization and folding of a model read the parameters of each nn.Conv2d.

    @property
    def weight(self) -> Any:  # type: ignore[override]  # a property in place of an attribute
        return self.conv.weight

    @property
    def bias(self) -> Any:  # type: ignore[override]
        return self.conv.bias
