"""The block of MobileNetV4."""

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from .._utils.checks import check_number, check_odd
from .._utils.construct import Builder, LayerArgument
from .conv import ConvNormAct
from .inverted_residual import InvertedBottleneck
from .layer_norm import LayerScale

__all__ = ["UniversalInvertedBottleneck"]


class UniversalInvertedBottleneck(InvertedBottleneck):
    r"""Inverted bottleneck with two optional depthwise convolutions, before and after the expansion.

    From `MobileNetV4 <https://arxiv.org/abs/2404.10518>`_ (section 3, figure 4). The two kernel sizes select one of its
    four blocks:

    =========================  =====================  ======================
    block                      ``start_kernel_size``  ``middle_kernel_size``
    =========================  =====================  ======================
    inverted bottleneck        ``None``               odd
    ConvNeXt-like              odd                    ``None``
    extra depthwise (ExtraDW)  odd                    odd
    feed-forward (FFN)         ``None``               ``None``
    =========================  =====================  ======================

    No activation follows the first depthwise convolution, the projection or the addition. The stride is that of the
    middle convolution or, without it, of the first one. The input is added if it has the shape of the output.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        start_kernel_size: size of the depthwise kernel before the expansion, odd; ``None`` for none.
        middle_kernel_size: size of the depthwise kernel after the expansion, odd; ``None`` for none.
        stride: ``1`` or ``2``; ``2`` requires a depthwise convolution. Default: ``1``.
        expand_ratio: the expansion has ``round(in_channels * expand_ratio)`` channels. Default: ``4``.
        norm_layer: called with its channels after each convolution; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        se_layer: channel attention before the projection, called with its channels, and with ``squeeze_channels``, a
            sixteenth of them, if it requires that. Default: ``None``.
        conv_layer: depthwise convolutions, called like ``nn.Conv2d``. Default: ``nn.Conv2d``.
        layer_scale: initial value of the learned scale of each channel of the branch. Default: ``None``, no scale.
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

        >>> tnn.UniversalInvertedBottleneck(8, 12, 3, 5, stride=2)(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 12, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        start_kernel_size: int | None,
        middle_kernel_size: int | None,
        stride: int = 1,
        expand_ratio: float = 4,
        *,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.ReLU,
        se_layer: LayerArgument | None = None,
        conv_layer: LayerArgument = nn.Conv2d,
        layer_scale: float | None = None,
        stochastic_depth: float = 0.0,
        kept_rows_only: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in (("start_kernel_size", start_kernel_size), ("middle_kernel_size", middle_kernel_size)):
            if size is not None:
                check_odd(name, size)
        super().__init__(
            in_channels, out_channels, middle_kernel_size or 1, stride, expand_ratio, stochastic_depth, kept_rows_only
        )
        if stride > 1 and start_kernel_size is None and middle_kernel_size is None:
            raise ValueError(
                f"stride must be 1 without a depthwise convolution, got {stride}: pass a start_kernel_size or a "
                "middle_kernel_size"
            )
        hidden = round(in_channels * expand_ratio)
        build = Builder(device, dtype)
        conv = partial(ConvNormAct, norm_layer=norm_layer, device=device, dtype=dtype)
        depthwise = partial(conv, conv_layer=conv_layer)
        layers = OrderedDict[str, nn.Module]()
        if start_kernel_size is not None:
            layers["start"] = depthwise(
                in_channels,
                in_channels,
                start_kernel_size,
                stride if middle_kernel_size is None else 1,
                groups=in_channels,
                activation_layer=None,
            )
        layers["expand"] = conv(in_channels, hidden, 1, activation_layer=activation_layer)
        if middle_kernel_size is not None:
            layers["middle"] = depthwise(
                hidden, hidden, middle_kernel_size, stride, groups=hidden, activation_layer=activation_layer
            )
        if se_layer is not None:
            layers["se"] = build.squeeze_excitation("se_layer", se_layer, hidden)
        layers["project"] = conv(hidden, out_channels, 1, activation_layer=None)
        if layer_scale is not None:
            scale = check_number("layer_scale", layer_scale)
            layers["scale"] = LayerScale(out_channels, scale, device=device, dtype=dtype)
        self.block = nn.Sequential(layers)

    def _branch(self, input: Tensor) -> Tensor:
        return self.block(input)
