"""Inverted residual block of MobileNetV2 and MobileNetV3."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import check_bool, check_input, check_int, check_odd, check_probability, check_same_shape
from .._utils.construct import Builder, LayerArgument
from .conv import ConvNormAct
from .stochastic_depth import StochasticDepth

__all__ = ["InvertedResidual"]


class InvertedBottleneck(nn.Module):
    """Base of this block and those of EfficientNet: argument checks and the skip connection."""

    __constants__ = ["use_res_connect"]  # noqa: RUF012  # torch.jit requires a list

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expand_ratio: float,
        stochastic_depth: float,
        kept_rows_only: bool = False,
        in_name: str = "in_channels",
        out_name: str = "out_channels",
    ) -> None:
        super().__init__()
        self.in_channels = check_int(in_name, in_channels)
        self.out_channels = check_int(out_name, out_channels)
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride!r}")
        if isinstance(expand_ratio, bool) or not isinstance(expand_ratio, (int, float)):
            raise TypeError(f"expand_ratio must be a number, got {expand_ratio!r}")
        if not 0 < expand_ratio < float("inf") or round(in_channels * expand_ratio) < 1:
            raise ValueError(
                f"expand_ratio must leave at least one channel, got {expand_ratio} for {in_name}={in_channels}"
            )
        check_odd("kernel_size", kernel_size)
        check_probability("stochastic_depth", stochastic_depth)
        check_bool("kept_rows_only", kept_rows_only)
        self.stride = self.reduction = stride
        self.use_res_connect = stride == 1 and in_channels == out_channels
        drops = self.use_res_connect and stochastic_depth > 0
        self.stochastic_depth = (
            StochasticDepth(stochastic_depth, "row", kept_rows_only=kept_rows_only) if drops else None
        )

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels)
        if not torch.jit.is_scripting():  # TorchScript cannot pass methods
            drop = self.stochastic_depth
            if isinstance(drop, StochasticDepth) and drop.kept_rows_only:
                return self._add_skip(drop.run_branch(self._branch, input, self.children()), input)
        branch = self._branch(input)
        if self.use_res_connect:
            if self.stochastic_depth is not None:
                branch = self.stochastic_depth(branch)
            branch = self._add_skip(branch, input)
        return branch

    def _branch(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        check_same_shape("the output of conv_layer", branch, skip, "the input")
        return skip + branch


class InvertedResidual(InvertedBottleneck):
    r"""Expanding pointwise, depthwise and linear pointwise convolution, added to the input if the shapes agree.

    From `MobileNetV2: Inverted Residuals and Linear Bottlenecks <https://arxiv.org/abs/1801.04381>`_ (table 1,
    section 3.3): no activation follows the last convolution or the addition. With ``se_layer`` and another activation
    it is the block of `MobileNetV3 <https://arxiv.org/abs/1905.02244>`_ (section 5.3). Drop-in for torchvision's block
    of MobileNetV2: call signatures and checkpoints work unchanged. Checkpoints of torchvision's MobileNetV3 block load
    too: ``load_state_dict`` translates its keys ``block.*``.

    Args:
        inp: channels of the input.
        oup: channels of the output.
        stride: stride of the depthwise convolution, ``1`` or ``2``.
        expand_ratio: the depthwise convolution has ``round(inp * expand_ratio)`` channels; ``1`` omits
            the expanding convolution.
        norm_layer: called with its channels; with ``nn.Identity`` the convolutions have a bias. Default: ``None``,
            ``nn.BatchNorm2d`` as in torchvision.
        kernel_size: size of the depthwise kernel, odd. Default: ``3``.
        dilation: spacing between elements of the depthwise kernel. Default: ``1``.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.ReLU6``.
        se_layer: channel attention after the depthwise convolution, called with its channels, and with
            ``squeeze_channels``, a sixteenth of them, if it requires that. Default: ``None``.
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

        >>> tnn.InvertedResidual(8, 12, stride=2, expand_ratio=6)(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 12, 8, 8])
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        stride: int,
        expand_ratio: float,
        norm_layer: LayerArgument | None = None,
        *,
        kernel_size: int = 3,
        dilation: int = 1,
        activation_layer: LayerArgument | None = nn.ReLU6,
        se_layer: LayerArgument | None = None,
        conv_layer: LayerArgument = nn.Conv2d,
        stochastic_depth: float = 0.0,
        kept_rows_only: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(inp, oup, kernel_size, stride, expand_ratio, stochastic_depth, kept_rows_only, "inp", "oup")
        if norm_layer is None:
            norm_layer = nn.BatchNorm2d
        hidden = round(inp * expand_ratio)

        build = Builder(device, dtype)
        norm = build.norm("norm_layer", norm_layer, oup)
        bias = isinstance(norm, nn.Identity)
        conv = partial(
            ConvNormAct,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        layers: list[nn.Module] = []
        if expand_ratio != 1:
            layers.append(conv(inp, hidden, kernel_size=1))
        layers.append(
            conv(hidden, hidden, kernel_size, stride, groups=hidden, dilation=dilation, conv_layer=conv_layer)
        )
        if se_layer is not None:
            layers.append(build.squeeze_excitation("se_layer", se_layer, hidden))
        layers.append(nn.Conv2d(hidden, oup, 1, bias=bias, device=device, dtype=dtype))
        layers.append(norm)
        self.conv = nn.Sequential(*layers)

    def _branch(self, input: Tensor) -> Tensor:
        return self.conv(input)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # The last convolution and its norm are siblings here, but one ConvNormAct in MobileNetV3.
        last = len(self.conv) - 2
        for key in [key for key in state_dict if key.startswith(f"{prefix}block.")]:
            index, _, name = key.removeprefix(f"{prefix}block.").partition(".")
            if index == str(last):
                part, _, name = name.partition(".")
                index = str(last + int(part))
            state_dict[f"{prefix}conv.{index}.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
