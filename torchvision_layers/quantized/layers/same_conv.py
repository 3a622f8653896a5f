"""Quantizable twin of the convolution with TensorFlow's padding."""

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
        kernel, stride, dilation = [*self.kernel_size], [*self.stride], [*self.dilation]
        padding = constant_same_padding(kernel, stride, dilation)
        self.pad = nn.Identity() if padding else SamePadding(kernel, stride, dilation)
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            tuple(padding) or 0,  # type: ignore[arg-type]  # two numbers
            self.dilation,
            self.groups,
            bias is not None,
            device="meta",
        )
        del self.weight, self.bias
        conv.weight, conv.bias = weight, bias
        self.conv = conv.train(self.training)
        hide_name(self, "conv")

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels, needs_pixels=True)
        return self.conv(self.pad(input))

    # Initialization and folding of a model read the parameters of each nn.Conv2d.

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]  # a property in place of an attribute
        return self.conv.weight

    @property
    def bias(self) -> nn.Parameter | None:  # type: ignore[override]
        return self.conv.bias
