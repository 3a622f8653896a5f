"""Convolution that also sees where it is."""

import torch
from torch import Tensor, nn

from ..._utils.checks import check_bool, check_input
from ...layers.positional_conv import PositionalConv2d, PositionMap, coordinates
from ._conv import CheckedConv2d

__all__ = ["CoordConv2d"]


class CoordConv2d(CheckedConv2d):
    r"""Convolution over the input and channels that hold the coordinates of each pixel: :math:`y = W * [x, i, j]`.

    From `An intriguing failing of convolutional neural networks and the CoordConv solution
    <https://arxiv.org/abs/1807.03247>`_ (section 3, figure 3): :math:`i` runs over the rows and :math:`j` over the
    columns, both from -1 to 1; one row or column alone is at 0. With :math:`r = \sqrt{i^2 + j^2}`, the distance from
    the centre, as a third where asked for. In a grouped convolution every group sees the coordinates.

    The channels of ``weight`` are those of the input followed by those of :math:`i, j` (and :math:`r`). They are never
    concatenated: the coordinates are the same for all images, so their part is computed once and added.

    Args:
        in_channels: channels of the input, without the coordinates.
        out_channels: channels of the output.
        kernel_size: side of the kernel, or (height, width).
        stride: step of the kernel. Default: ``1``.
        padding: width of the border on each side, or ``"same"`` or ``"valid"``; coordinates are padded as the input is.
            Default: ``0``.
        dilation: space between the elements of the kernel. Default: ``1``.
        groups: blocks of channels that do not see each other; divides both widths. Default: ``1``.
        bias: learned shift of each output channel. Default: ``True``.
        padding_mode: what the border holds, as in ``nn.Conv2d``. Default: ``"zeros"``.
        with_r: whether there is a channel of :math:`r`. Default: ``False``.
        device: where the parameters are made. Default: torch's.
        dtype: type of the parameters. Default: torch's.

    Errors: ``TypeError`` for an argument of another type; ``ValueError`` for a number out of its range, or an input of
    another rank or width, or without pixels.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')` as of ``nn.Conv2d``; ``weight`` is
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
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.with_r = check_bool("with_r", with_r)
        channels = in_channels // groups + (3 if with_r else 2)
        self.weight = nn.Parameter(self.weight.new_empty((out_channels, channels, *self.kernel_size)))
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels, needs_pixels=True)
        channels = self.in_channels // self.groups
        shift = self._slide(coordinates(input, self.with_r), self.weight[:, channels:], None, 1)
        return self._slide(input, self.weight[:, :channels], self.bias, self.groups).add_(shift)

    def folded(self) -> nn.Module:
        """A plain convolution, and a map of the coordinates that is kept for each size of image."""
        weight, bias = self.weight.detach(), None if self.bias is None else self.bias.detach()
        channels = self.in_channels // self.groups
        conv = self._plain(weight[:, :channels], bias, self.groups)
        return PositionalConv2d(conv, PositionMap(self._plain(weight[:, channels:], None, 1), self.with_r))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, with_r={self.with_r}"
