"""Inverted residual blocks of EfficientNet and EfficientNetV2."""

from functools import partial

import torch
from torch import Tensor, nn

from .._utils.construct import Builder, LayerArgument
from .conv import ConvNormAct
from .inverted_residual import InvertedBottleneck
from .squeeze_excitation import SqueezeExcitation

__all__ = ["FusedMBConv", "MBConv"]


class MBConv(InvertedBottleneck):
    r"""The block of EfficientNet: expanding pointwise, depthwise, channel attention, linear pointwise convolution.

    From `EfficientNet <https://arxiv.org/abs/1905.11946>`_ (table 1), which takes it from `MnasNet
    <https://arxiv.org/abs/1807.11626>`_ (figure 7). Loads checkpoints of torchvision's ``MBConv``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the depthwise kernel, odd. Default: ``3``.
        stride: stride of the depthwise convolution, ``1`` or ``2``. Default: ``1``.
        expand_ratio: the depthwise convolution has ``round(in_channels * expand_ratio)`` channels; if that equals
            ``in_channels``, the expanding convolution is omitted. Default: ``6``.
        norm_layer: called with its channels; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.SiLU``.
        se_layer: called with the expanded channels; if it takes them, also with ``squeeze_channels``, a quarter of
            ``in_channels``, and with the ``activation`` of the block. ``None`` for none. Default:
            :class:`SqueezeExcitation`.
        conv_layer: depthwise convolution, called like ``nn.Conv2d``. Default: ``nn.Conv2d``.
        stochastic_depth: probability of dropping the branch of a sample in training; used only if there is a skip
            connection. Default: ``0.0``.
        kept_rows_only: whether training computes the branch only for the samples that keep it, which saves time; an
            error if the branch has batch statistics. See :meth:`StochasticDepth.run_branch`. Default: ``False``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. An argument of the wrong type raises
    ``TypeError``; a number out of range, or an instance with the wrong number of channels, raises ``ValueError``.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, \lceil H/s \rceil, \lceil W/s \rceil)`.

    Examples::

        >>> tnn.MBConv(8, 12, stride=2)(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 12, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: float = 6,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.SiLU,
        *,
        se_layer: LayerArgument | None = SqueezeExcitation,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        kept_rows_only: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, expand_ratio, stochastic_depth, kept_rows_only)
        hidden = round(in_channels * expand_ratio)
        conv = partial(ConvNormAct, norm_layer=norm_layer, device=device, dtype=dtype)
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(conv(in_channels, hidden, 1, activation_layer=activation_layer))
        layers.append(
            conv(
                hidden,
                hidden,
                kernel_size,
                stride,
                groups=hidden,
                activation_layer=activation_layer,
                conv_layer=conv_layer,
            )
        )
        if se_layer is not None:
            squeeze = max(1, in_channels // 4)
            layers.append(
                Builder(device, dtype).squeeze_excitation("se_layer", se_layer, hidden, squeeze, activation_layer)
            )
        layers.append(conv(hidden, out_channels, 1, activation_layer=None))
        self.block = nn.Sequential(*layers)

    def _branch(self, input: Tensor) -> Tensor:
        return self.block(input)


class FusedMBConv(InvertedBottleneck):
    r"""The block of early EfficientNetV2 stages: an expanding full convolution and a linear pointwise convolution.

    From `EfficientNetV2 <https://arxiv.org/abs/2104.00298>`_ (figure 2). Loads checkpoints of torchvision's
    ``FusedMBConv``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the kernel, odd. Default: ``3``.
        stride: stride of the first convolution, ``1`` or ``2``. Default: ``1``.
        expand_ratio: the first convolution has ``round(in_channels * expand_ratio)`` output channels; if that equals
            ``in_channels``, the block is a single convolution with activation. Default: ``4``.
        norm_layer: called with its channels; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.SiLU``.
        conv_layer: first convolution, called like ``nn.Conv2d``. Default: ``nn.Conv2d``.
        stochastic_depth: probability of dropping the branch of a sample in training; used only if there is a skip
            connection. Default: ``0.0``.
        kept_rows_only: whether training computes the branch only for the samples that keep it, which saves time; an
            error if the branch has batch statistics. See :meth:`StochasticDepth.run_branch`. Default: ``False``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. An argument of the wrong type raises
    ``TypeError``; a number out of range, or an instance with the wrong number of channels, raises ``ValueError``.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, \lceil H/s \rceil, \lceil W/s \rceil)`.

    Examples::

        >>> tnn.FusedMBConv(8, 12, stride=2)(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 12, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: float = 4,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.SiLU,
        *,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        kept_rows_only: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, expand_ratio, stochastic_depth, kept_rows_only)
        hidden = round(in_channels * expand_ratio)
        conv = partial(ConvNormAct, norm_layer=norm_layer, device=device, dtype=dtype)
        spatial = partial(
            conv,
            in_channels,
            kernel_size=kernel_size,
            stride=stride,
            activation_layer=activation_layer,
            conv_layer=conv_layer,
        )
        if hidden != in_channels:
            self.block = nn.Sequential(spatial(hidden), conv(hidden, out_channels, 1, activation_layer=None))
        else:
            self.block = nn.Sequential(spatial(out_channels))

    def _branch(self, input: Tensor) -> Tensor:
        return self.block(input)
