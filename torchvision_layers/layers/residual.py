"""Basic and bottleneck blocks of residual networks."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from .._utils.checks import check_bool, check_input, check_int, check_probability, check_same_shape
from .._utils.construct import Builder, LayerArgument
from .stochastic_depth import StochasticDepth

__all__ = ["BasicBlock", "Bottleneck"]


class _ResidualBlock(nn.Module):
    """Base of both blocks: argument checks, and everything after the last normalization."""

    expansion: ClassVar[int]

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        groups: int,
        dilation: int,
        stochastic_depth: float,
        kept_rows_only: bool,
    ) -> None:
        super().__init__()
        self.inplanes = check_int("inplanes", inplanes)
        check_int("planes", planes)
        self.stride = check_int("stride", stride)
        check_int("groups", groups)
        check_int("dilation", dilation)
        check_probability("stochastic_depth", stochastic_depth)
        check_bool("kept_rows_only", kept_rows_only)
        if downsample is not None and not isinstance(downsample, nn.Module):
            raise TypeError(f"downsample must be a module or None, got {downsample!r}")

    def _build_tail(
        self,
        build: Builder,
        out_channels: int,
        downsample: nn.Module | None,
        norm_layer: LayerArgument,
        activation_layer: LayerArgument | None,
        se_layer: LayerArgument | None,
        stochastic_depth: float,
        kept_rows_only: bool,
    ) -> None:
        self.out_channels = out_channels
        self.reduction = self.stride
        self.se = None if se_layer is None else build.squeeze_excitation("se_layer", se_layer, out_channels)
        self.stochastic_depth = (
            StochasticDepth(stochastic_depth, "row", kept_rows_only=kept_rows_only) if stochastic_depth > 0 else None
        )
        if downsample is None and (self.stride != 1 or self.inplanes != out_channels):
            norm = build.norm("norm_layer", norm_layer, out_channels)
            downsample = nn.Sequential(_conv1x1(build, self.inplanes, out_channels, self.stride, norm), norm)
        self.downsample = None if downsample is None else build.module("downsample", downsample)
        self.act = build.activation("activation_layer", activation_layer, out_channels, inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.inplanes)
        if not torch.jit.is_scripting():  # TorchScript cannot pass methods
            drop = self.stochastic_depth
            if isinstance(drop, StochasticDepth) and drop.kept_rows_only:
                branch = drop.run_branch(self._branch, input, self._branch_layers())
                return self._add_skip(branch, input if self.downsample is None else self.downsample(input))
        branch = self._branch(input)
        if self.stochastic_depth is not None:
            branch = self.stochastic_depth(branch)
        return self._add_skip(branch, input if self.downsample is None else self.downsample(input))

    def _branch(self, input: Tensor) -> Tensor:
        branch = self._convs(input)
        return branch if self.se is None else self.se(branch)

    def _branch_layers(self) -> list[nn.Module]:
        return [child for name, child in self.named_children() if name != "downsample"]

    def _convs(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        if self.downsample is None:
            check_same_shape("the output of conv_layer", branch, skip, "the input")
        else:
            check_same_shape("the output of downsample", skip, branch, "the branch")
        branch += skip
        return self.act(branch)


def _needs_bias(norm: nn.Module) -> bool:
    """A convolution needs a bias only if no normalization follows."""
    return isinstance(norm, nn.Identity)


def _conv1x1(build: Builder, in_channels: int, out_channels: int, stride: int, norm: nn.Module) -> nn.Conv2d:
    bias = _needs_bias(norm)
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias, device=build.device, dtype=build.dtype)


def _conv3x3(
    build: Builder,
    conv_layer: LayerArgument,
    in_channels: int,
    out_channels: int,
    stride: int,
    dilation: int,
    groups: int,
    norm: nn.Module,
) -> nn.Module:
    return build.conv(
        "conv_layer",
        conv_layer,
        in_channels,
        out_channels,
        kernel_size=(3, 3),
        stride=(stride, stride),
        padding=(dilation, dilation),
        dilation=(dilation, dilation),
        groups=groups,
        bias=_needs_bias(norm),
    )


class BasicBlock(_ResidualBlock):
    r"""Two 3×3 convolutions with a skip connection: :math:`y = a(n(w_2 * a(n(w_1 * x))) + s(x))`.

    From `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_ (eq. 1 and 2, figure 5
    left). Drop-in for torchvision's ``BasicBlock``: call signatures and checkpoints work unchanged.

    Args:
        inplanes: channels of the input.
        planes: channels of the output.
        stride: stride of the first convolution and of the skip connection. Default: ``1``.
        downsample: module on the skip connection :math:`s`, which is copied. Default: ``None``, the identity, or a
            strided 1×1 convolution with normalization if the shapes differ (eq. 2).
        groups: must be ``1``; present for compatibility with torchvision.
        base_width: must be ``64``; present for compatibility with torchvision.
        dilation: spacing between elements of both kernels. Default: ``1``.
        norm_layer: called with its channels; with ``nn.Identity`` the convolutions have a bias.
            Default: ``None``, ``nn.BatchNorm2d`` as in torchvision.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        se_layer: channel attention at the end of the branch, called with ``planes``, and with ``squeeze_channels``, a
            sixteenth of ``planes``, if it requires that. Default: ``None``.
        conv_layer: 3×3 convolutions, called like ``nn.Conv2d``. Default: ``nn.Conv2d``.
        stochastic_depth: probability of dropping the branch of a sample in training. Default: ``0.0``.
        kept_rows_only: whether training computes the branch only for the samples that keep it, which saves time; an
            error if the branch has batch statistics. See :meth:`StochasticDepth.run_branch`. Default: ``False``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. An argument of the wrong type raises
    ``TypeError``; a number out of range, or an instance with the wrong number of channels, raises ``ValueError``.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, \lceil H/s \rceil, \lceil W/s \rceil)`.

    Examples::

        >>> tnn.BasicBlock(8, 16, stride=2)(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 16, 8, 8])
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: LayerArgument | None = None,
        *,
        activation_layer: LayerArgument | None = nn.ReLU,
        se_layer: LayerArgument | None = None,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        kept_rows_only: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample, groups, dilation, stochastic_depth, kept_rows_only)
        if groups != 1 or base_width != 64:
            raise ValueError(f"groups and base_width must be 1 and 64 in BasicBlock, got {groups!r} and {base_width!r}")
        if norm_layer is None:
            norm_layer = nn.BatchNorm2d
        build = Builder(device, dtype)
        norm1 = build.norm("norm_layer", norm_layer, planes)
        norm2 = build.norm("norm_layer", norm_layer, planes)
        self.conv1 = _conv3x3(build, conv_layer, inplanes, planes, stride, dilation, 1, norm1)
        self.bn1 = norm1
        self.act1 = build.activation("activation_layer", activation_layer, planes, inplace=True)
        self.conv2 = _conv3x3(build, conv_layer, planes, planes, 1, dilation, 1, norm2)
        self.bn2 = norm2
        self._build_tail(
            build, planes, downsample, norm_layer, activation_layer, se_layer, stochastic_depth, kept_rows_only
        )

    def _convs(self, input: Tensor) -> Tensor:
        branch = self.act1(self.bn1(self.conv1(input)))
        return self.bn2(self.conv2(branch))


class Bottleneck(_ResidualBlock):
    r"""A 3×3 convolution between two 1×1 convolutions, with a skip connection.

    From `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_ (figure 5 right), with the
    stride in the 3×3 convolution as in torchvision. ``groups`` makes it the block of `ResNeXt
    <https://arxiv.org/abs/1611.05431>`_, ``base_width`` that of `Wide ResNet <https://arxiv.org/abs/1605.07146>`_.
    Drop-in for torchvision's ``Bottleneck``: call signatures and checkpoints work unchanged.

    Args:
        inplanes: channels of the input.
        planes: a quarter of the output channels (``expansion`` is 4).
        stride: stride of the 3×3 convolution and of the skip connection. Default: ``1``.
        downsample: module on the skip connection, which is copied. Default: ``None``, the identity, or a strided 1×1
            convolution with normalization if the shapes differ.
        groups: groups of the 3×3 convolution. Default: ``1``.
        base_width: the 3×3 convolution has ``int(planes * base_width / 64) * groups`` channels. Default: ``64``.
        dilation: spacing between elements of the 3×3 kernel. Default: ``1``.
        norm_layer: called with its channels; with ``nn.Identity`` the convolutions have a bias.
            Default: ``None``, ``nn.BatchNorm2d`` as in torchvision.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        se_layer: channel attention at the end of the branch, called with ``4 * planes``, and with ``squeeze_channels``,
            a sixteenth of that, if it requires it. Default: ``None``.
        conv_layer: 3×3 convolution, called like ``nn.Conv2d``. Default: ``nn.Conv2d``.
        stochastic_depth: probability of dropping the branch of a sample in training. Default: ``0.0``.
        kept_rows_only: whether training computes the branch only for the samples that keep it, which saves time; an
            error if the branch has batch statistics. See :meth:`StochasticDepth.run_branch`. Default: ``False``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. An argument of the wrong type raises
    ``TypeError``; a number out of range, or an instance with the wrong number of channels, raises ``ValueError``.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, 4 P, \lceil H/s \rceil, \lceil W/s \rceil)`, where
    :math:`P` is ``planes``.

    Examples::

        >>> tnn.Bottleneck(8, 4, stride=2)(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 16, 8, 8])
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: LayerArgument | None = None,
        *,
        activation_layer: LayerArgument | None = nn.ReLU,
        se_layer: LayerArgument | None = None,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        kept_rows_only: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample, groups, dilation, stochastic_depth, kept_rows_only)
        channels = int(planes * (check_int("base_width", base_width) / 64)) * groups
        if channels == 0:
            raise ValueError(f"base_width must leave at least one channel, got {base_width} for planes={planes}")
        if norm_layer is None:
            norm_layer = nn.BatchNorm2d
        out_channels = planes * self.expansion
        build = Builder(device, dtype)
        norm1 = build.norm("norm_layer", norm_layer, channels)
        norm2 = build.norm("norm_layer", norm_layer, channels)
        norm3 = build.norm("norm_layer", norm_layer, out_channels)
        self.conv1 = _conv1x1(build, inplanes, channels, 1, norm1)
        self.bn1 = norm1
        self.act1 = build.activation("activation_layer", activation_layer, channels, inplace=True)
        self.conv2 = _conv3x3(build, conv_layer, channels, channels, stride, dilation, groups, norm2)
        self.bn2 = norm2
        self.act2 = build.activation("activation_layer", activation_layer, channels, inplace=True)
        self.conv3 = _conv1x1(build, channels, out_channels, 1, norm3)
        self.bn3 = norm3
        self._build_tail(
            build, out_channels, downsample, norm_layer, activation_layer, se_layer, stochastic_depth, kept_rows_only
        )

    def _convs(self, input: Tensor) -> Tensor:
        branch = self.act1(self.bn1(self.conv1(input)))
        branch = self.act2(self.bn2(self.conv2(branch)))
        return self.bn3(self.conv3(branch))
