"""Upsampling block with a skip connection."""

from functools import partial

import torch
from torch import Tensor, nn

from ..._utils.checks import check_input, check_int, is_tensor
from ..._utils.construct import Builder, LayerArgument
from ...layers.conv import ConvNormAct
from ._levels import resize

__all__ = ["UpBlock"]


class UpBlock(nn.Module):
    r"""Upsampling, concatenation with a skip, two 3×3 convolutions: :math:`y = c_2(c_1([s, u(x)]))`.

    From `U-Net <https://arxiv.org/abs/1505.04597>`_ (figure 1), with padding, so that the output has the size of the
    skip :math:`s`. The input is interpolated to that size, which need not be the double: an image of 15 rows has 7
    after pooling. For a transposed convolution before that, which neither engine computes in int8, pass
    ``up_layer=partial(nn.ConvTranspose2d, kernel_size=2, stride=2)``.

    Args:
        in_channels: channels of the input.
        skip_channels: channels of the skip.
        out_channels: channels of both convolutions and of the output.
        up_layer: called with ``in_channels`` and ``out_channels``. Default: ``None``, interpolation alone.
        mode: of the interpolation, ``"nearest"`` or ``"bilinear"``. Default: ``"nearest"``.
        norm_layer: called with ``out_channels``; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. Errors: ``TypeError`` for an argument
    of the wrong type; ``ValueError`` for a number out of range, an instance with the wrong number of channels, another
    mode, or an input or skip with another number of dimensions or channels or without pixels.

    Shape: input :math:`(N, C_{in}, H, W)`, skip :math:`(N, C_{skip}, H', W')`, output :math:`(N, C_{out}, H', W')`.
    The attribute ``reduction`` is 1, relative to the skip.

    Examples::

        >>> enn.UpBlock(32, 16, 16)(torch.rand(2, 32, 7, 7), torch.rand(2, 16, 15, 15)).shape
        torch.Size([2, 16, 15, 15])
    """

    #: The output has the size of the skip.
    reduction = 1

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        up_layer: LayerArgument | None = None,
        mode: str = "nearest",
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.ReLU,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels)
        self.skip_channels = check_int("skip_channels", skip_channels)
        self.out_channels = check_int("out_channels", out_channels)
        if mode not in ("nearest", "bilinear"):
            raise ValueError(f"mode must be 'nearest' or 'bilinear', got {mode!r}")
        self.mode = mode
        self.up, up_channels = None, in_channels
        if up_layer is not None:
            self.up = Builder(device, dtype).module("up_layer", up_layer, in_channels, out_channels)
            up_channels = out_channels
            for name, expected in (("in_channels", in_channels), ("out_channels", out_channels)):
                actual = getattr(self.up, name, expected)
                if actual != expected:
                    raise ValueError(f"up_layer has {name}={actual}, expected {expected}")
        conv = partial(
            ConvNormAct,
            out_channels=out_channels,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            device=device,
            dtype=dtype,
        )
        self.conv1 = conv(skip_channels + up_channels)
        self.conv2 = conv(out_channels)

    def forward(self, input: Tensor, skip: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels, needs_pixels=True)
        check_input(skip, 4, self.skip_channels, needs_pixels=True, name="skip")
        if is_tensor(skip, "skip") and skip.shape[0] != input.shape[0]:
            raise ValueError(f"skip must have the batch size of input, {input.shape[0]}, got {skip.shape[0]}")
        if self.up is not None:
            input = self.up(input)
        return self.conv2(self.conv1(torch.cat([skip, resize(input, skip, self.mode)], 1)))

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"
