"""Convolution with coordinate channels."""

import torch
from torch import Tensor, nn

from ..._utils.checks import check_bool, check_input
from ...layers.checked_conv import CheckedConv2d
from ...layers.positional_conv import PositionalConv2d, PositionMap, coordinates

__all__ = ["CoordConv2d"]


class CoordConv2d(CheckedConv2d):
    r"""Convolution over the input and the coordinates of each pixel: :math:`y = W * [x, i, j]`.

    From `An intriguing failing of convolutional neural networks and the CoordConv solution
    <https://arxiv.org/abs/1807.03247>`_ (section 3, figure 3): :math:`i` runs over the rows and :math:`j` over the
    columns, both from -1 to 1; a single row or column is at 0. ``with_r`` adds the distance from the centre,
    :math:`r = \sqrt{i^2 + j^2}`. In a grouped convolution, every group sees all coordinates.

    The input channels of ``weight`` are those of the input followed by :math:`i, j` (and :math:`r`). The coordinates
    are not concatenated to the input: they are the same for all images, so their part of the convolution is computed
    once per batch and added.

    Args:
        in_channels: channels of the input, without the coordinates.
        out_channels: channels of the output.
        kernel_size: size of the kernel, an int or (height, width).
        stride: stride of the convolution. Default: ``1``.
        padding: padding on each side, or ``"same"`` or ``"valid"``; coordinates are padded like the input.
            Default: ``0``.
        dilation: spacing between kernel elements. Default: ``1``.
        groups: number of channel groups; divides ``in_channels`` and ``out_channels``. Default: ``1``.
        bias: whether each output channel has a learned bias. Default: ``True``.
        padding_mode: as in ``nn.Conv2d``. Default: ``"zeros"``.
        with_r: whether :math:`r` is one of the coordinates. Default: ``False``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: ``TypeError`` for an argument of the wrong type; ``ValueError`` for a number out of range, or an input with
    another number of dimensions or channels, or without pixels.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')` as for ``nn.Conv2d``; ``weight`` is
    :math:`(C_{out}, C_{in} / groups + 2, k_h, k_w)`, or ``+ 3`` with :math:`r`.

    Examples::

        >>> enn.CoordConv2d(3, 8, 3, padding=1)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        with_r: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.with_r = check_bool("with_r", with_r)
        channels = in_channels // groups + (3 if with_r else 2)
        self.weight = nn.Parameter(self.weight.new_empty((out_channels, channels, *self.kernel_size)))
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels, needs_pixels=True)
        channels = self.in_channels // self.groups
        shift = self._convolve(coordinates(input, self.with_r), self.weight[:, channels:], None, 1)
        return self._convolve(input, self.weight[:, :channels], self.bias, self.groups).add_(shift)

    def folded(self) -> nn.Module:
        """A plain convolution plus the convolution of the coordinates, which is cached per image size."""
        weight, bias = self.weight.detach(), None if self.bias is None else self.bias.detach()
        channels = self.in_channels // self.groups
        conv = self._plain_conv(weight[:, :channels], bias, self.groups)
        return PositionalConv2d(conv, PositionMap(self._plain_conv(weight[:, channels:], None, 1), self.with_r))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, with_r={self.with_r}"
