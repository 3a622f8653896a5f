"""A convolution that pads its input as TensorFlow does."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import check_input, check_sizes
from .._utils.plain.padding import constant_same_padding, pad_same
from .checked_conv import CheckedConv2d

__all__ = ["Conv2dSame"]


class Conv2dSame(CheckedConv2d):
    r"""Convolution with TensorFlow's ``"SAME"`` padding: an output of :math:`\lceil H/s \rceil` by :math:`\lceil W/s
    \rceil`.

    A dimension of size :math:`n` gets :math:`p = \max((\lceil n/s \rceil - 1) s + (k - 1) d + 1 - n,\ 0)` zeros,
    :math:`\lfloor p/2 \rfloor` of them at its start and the others at its end. At stride 2, an image of even size is
    therefore padded at the end only. Symmetric padding samples other pixels, which changes the results of weights that
    were trained with TensorFlow, such as those of EfficientNet and MobileNet. Loads checkpoints of ``nn.Conv2d``, and
    those of ``Conv2dSame`` in timm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the kernel, an int or (height, width).
        stride: stride of the convolution. Default: ``1``.
        padding: ``"same"``, or :math:`\lfloor (k - 1) d / 2 \rfloor`, the number that other layers pass to their
            ``conv_layer`` to keep the size; both mean the padding above. Default: ``"same"``.
        dilation: spacing between kernel elements. Default: ``1``.
        groups: number of channel groups; divides ``in_channels`` and ``out_channels``. Default: ``1``.
        bias: whether each output channel has a learned bias. Default: ``True``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: ``TypeError`` for an argument of the wrong type; ``ValueError`` for a number out of range, for any other
    padding, or for an input with another number of dimensions or channels, or without pixels.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, \lceil H/s \rceil, \lceil W/s \rceil)`.

    Examples::

        >>> tnn.Conv2dSame(3, 8, 3, stride=2)(torch.rand(2, 3, 15, 16)).shape
        torch.Size([2, 8, 8, 8])
        >>> layer = tnn.ConvNormAct(3, 8, stride=2, conv_layer=tnn.Conv2dSame)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = "same",
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias, "zeros", device, dtype
        )
        (height, width), (row_step, column_step) = self.kernel_size, self.dilation
        keeps_size = ((height - 1) * row_step // 2, (width - 1) * column_step // 2)
        if padding != "same" and (
            isinstance(padding, str) or check_sizes("padding", padding, 2, minimum=0) != keeps_size
        ):
            raise ValueError(f"padding must be 'same' or {keeps_size}, which keeps the size, got {padding!r}")
        self.padding = "same"
        row_stride, column_stride = self.stride
        self.reduction = row_stride if row_stride == column_stride else (row_stride, column_stride)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels, needs_pixels=True)
        kernel = [self.kernel_size[0], self.kernel_size[1]]
        stride = [self.stride[0], self.stride[1]]
        dilation = [self.dilation[0], self.dilation[1]]
        padding = constant_same_padding(kernel, stride, dilation)
        if len(padding) == 0:
            input, padding = pad_same(input, kernel, stride, dilation), [0, 0]
        return F.conv2d(input, self.weight, self.bias, stride, padding, dilation, self.groups)
