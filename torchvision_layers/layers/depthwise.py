"""Depthwise separable convolution."""

import torch
from torch import Tensor, nn

from .._utils.checks import check_int
from .._utils.construct import LayerArgument
from .conv import ConvNormAct

__all__ = ["DepthwiseSeparableConv"]


class DepthwiseSeparableConv(nn.Module):
    r"""A depthwise convolution followed by a pointwise convolution, each with normalization and activation.

    From `MobileNets <https://arxiv.org/abs/1704.04861>`_ (section 3.1, figure 3 right). The two convolutions have
    :math:`C k^2 + C C'` weights; a full convolution from :math:`C` to :math:`C'` channels has :math:`C C' k^2`.

    Args:
        in_channels: channels :math:`C` of the input.
        out_channels: channels :math:`C'` of the output.
        kernel_size: size :math:`k` of the depthwise kernel, an int or (height, width). Default: ``3``.
        stride: stride of the depthwise convolution. Default: ``1``.
        padding: zeros on each side. Default: ``None``, which keeps the size at stride 1; the kernel must then be odd.
        dilation: spacing between elements of the depthwise kernel. Default: ``1``.
        depth_multiplier: number of depthwise filters per input channel. Default: ``1``.
        norm_layer: called with its channels after each convolution; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: after each normalization; ``None`` for none. Default: ``nn.ReLU``.
        conv_layer: depthwise convolution, called like ``nn.Conv2d``. Default: ``nn.Conv2d``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. Errors: as in :class:`ConvNormAct`.

    Shape: input :math:`(N, C, H, W)`, output :math:`(N, C', H', W')`.

    Examples::

        >>> tnn.DepthwiseSeparableConv(8, 16, stride=2)(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        dilation: int | tuple[int, int] = 1,
        depth_multiplier: int = 1,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.ReLU,
        *,
        conv_layer: LayerArgument = nn.Conv2d,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = check_int("in_channels", in_channels) * check_int("depth_multiplier", depth_multiplier)
        check_int("out_channels", out_channels)
        self.depthwise = ConvNormAct(
            in_channels,
            hidden,
            kernel_size,
            stride,
            padding,
            groups=in_channels,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            dilation=dilation,
            conv_layer=conv_layer,
            device=device,
            dtype=dtype,
        )
        self.pointwise = ConvNormAct(
            hidden,
            out_channels,
            kernel_size=1,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            device=device,
            dtype=dtype,
        )
        self.out_channels = out_channels
        self.reduction = self.depthwise.reduction

    def forward(self, input: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(input))
