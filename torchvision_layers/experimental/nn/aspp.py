"""Atrous spatial pyramid pooling."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..._utils.checks import check_input, check_int, check_probability
from ..._utils.construct import LayerArgument
from ...layers.conv import ConvNormAct

__all__ = ["ASPP"]


class ASPP(nn.Module):
    r"""Parallel convolutions with several dilations, and the mean of the image: :math:`y = p([f_0(x), \ldots, f_n(x),
    g(x)])`.

    From `Rethinking Atrous Convolution <https://arxiv.org/abs/1706.05587>`_ (section 3.3, figure 5): :math:`f_0` is a
    1×1 convolution, :math:`f_i` a 3×3 convolution dilated by the i-th rate, :math:`g` a 1×1 convolution of the mean
    over all pixels, :math:`p` a 1×1 convolution with dropout. Each convolution has a normalization and an activation.
    Drop-in for torchvision's ``ASPP`` of DeepLabV3: call signatures and checkpoints work unchanged.

    Args:
        in_channels: channels of the input.
        atrous_rates: dilations of the 3×3 convolutions, in pixels.
        out_channels: channels of each branch and of the output. Default: ``256``.
        norm_layer: called with ``out_channels``; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        dropout: probability of zeroing an output value in training. Default: ``0.5``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. Errors: ``TypeError`` for an argument
    of the wrong type; ``ValueError`` for a number out of range, an instance with the wrong number of channels, an input
    with another number of dimensions or channels or without pixels, or one image in training with
    ``norm_layer=nn.BatchNorm2d``, which needs more than one mean.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H, W)`.

    Examples::

        >>> enn.ASPP(32, (6, 12, 18), 16)(torch.rand(2, 32, 33, 33)).shape
        torch.Size([2, 16, 33, 33])
    """

    #: The output has the size of the input.
    reduction = 1

    def __init__(
        self,
        in_channels: int,
        atrous_rates: Sequence[int],
        out_channels: int = 256,
        *,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.ReLU,
        dropout: float = 0.5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels)
        self.out_channels = check_int("out_channels", out_channels)
        if isinstance(atrous_rates, str) or not isinstance(atrous_rates, Sequence):
            raise TypeError(f"atrous_rates must be a sequence of ints, got {atrous_rates!r}")
        rates = [check_int("atrous_rates", rate) for rate in atrous_rates]
        check_probability("dropout", dropout)
        conv = partial(
            ConvNormAct,
            out_channels=out_channels,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            device=device,
            dtype=dtype,
        )
        pooled = _PooledBranch(nn.AdaptiveAvgPool2d(1), *conv(in_channels, kernel_size=1))
        dilated = (conv(in_channels, kernel_size=3, dilation=rate) for rate in rates)
        self.convs = nn.ModuleList([conv(in_channels, kernel_size=1), *dilated, pooled])
        project = conv(len(self.convs) * out_channels, kernel_size=1)
        self.project = nn.Sequential(*project, nn.Dropout(dropout))

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels, needs_pixels=True)
        outputs: list[Tensor] = []
        for conv in self.convs:
            outputs.append(conv(input))
        return self.project(torch.cat(outputs, 1))


class _PooledBranch(nn.Sequential):
    """Convolution of the mean of the image, at every pixel."""

    def forward(self, input: Tensor) -> Tensor:
        mean = input
        for layer in self:
            mean = layer(mean)
        # Repeated in rows of channels: an image of one pixel has no layout that torch.cat could keep.
        pixel = mean.permute(0, 2, 3, 1)
        return pixel.expand(-1, input.shape[2], input.shape[3], -1).contiguous().permute(0, 3, 1, 2)
