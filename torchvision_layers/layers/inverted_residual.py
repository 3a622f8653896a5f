"""The building block of MobileNetV2 and MobileNetV3."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import check_input, check_int, check_odd, check_probability, check_same_shape
from .._utils.construct import Builder, LayerArgument
from .conv import ConvNormAct
from .stochastic_depth import StochasticDepth

__all__ = ["InvertedResidual"]


class InvertedBottleneck(nn.Module):
    """What this block and those of EfficientNet have in common: the checks, and the addition to the input."""

    __constants__ = ["use_res_connect"]  # noqa: RUF012  # as torch.jit wants it

    def __init__(
        self,
        in_name: str,
        in_channels: int,
        out_name: str,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expand_ratio: float,
        stochastic_depth: float,
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
        self.stride = stride
        self.use_res_connect = stride == 1 and in_channels == out_channels
        drops = self.use_res_connect and stochastic_depth > 0
        self.stochastic_depth = StochasticDepth(stochastic_depth, "row") if drops else None

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels)
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
    r"""Expansion, depthwise convolution and linear projection, added to the input where the shapes agree.

    From `MobileNetV2: Inverted Residuals and Linear Bottlenecks <https://arxiv.org/abs/1801.04381>`_ (table 1,
    section 3.3): no activation follows the projection or the addition. With ``se_layer`` and another activation it is
    the block of `MobileNetV3 <https://arxiv.org/abs/1905.02244>`_ (section 5.3). Calls of torchvision's block of
    MobileNetV2 fit, and checkpoints of both its blocks: the keys ``block.*`` of MobileNetV3 are read as the keys here.

    Args:
        inp: channels of the input.
        oup: channels of the output.
        stride: step of the depthwise convolution, ``1`` or ``2``.
        expand_ratio: the depthwise convolution has ``round(inp * expand_ratio)`` channels; ``1`` leaves the
            expansion out.
        norm_layer: called with its channels. Default: ``None``, which means ``nn.BatchNorm2d`` as in torchvision;
            ``nn.Identity`` for none, which gives the convolutions a bias.
        kernel_size: side of the depthwise kernel, odd. Default: ``3``.
        dilation: space between the elements of the depthwise kernel. Default: ``1``.
        activation_layer: called with ``inplace=True`` where it takes it; ``None`` for none. Default: ``nn.ReLU6``.
        se_layer: channel attention after the depthwise convolution, called with its channels (and
            ``squeeze_channels``, a sixteenth of them, where it insists). Default: ``None``.
        conv_layer: makes the depthwise convolution, called as ``nn.Conv2d`` is. Default: ``nn.Conv2d``.
        stochastic_depth: probability of dropping the branch of a sample in training, where there is a skip.
            Default: ``0.0``.
        device: where the parameters are made. Default: torch's.
        dtype: type of the parameters. Default: torch's.

    A layer argument is a constructor, or a module that is copied at each place. Errors: ``TypeError`` for an argument
    of another type, ``ValueError`` for a number out of its range or an instance with another width.

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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__("inp", inp, "oup", oup, kernel_size, stride, expand_ratio, stochastic_depth)
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
        last = len(self.conv) - 2  # here convolution and norm of the projection stand side by side, there in one block
        for key in [key for key in state_dict if key.startswith(f"{prefix}block.")]:
            place, _, name = key.removeprefix(f"{prefix}block.").partition(".")
            if place == str(last):
                part, _, name = name.partition(".")
                place = str(last + int(part))
            state_dict[f"{prefix}conv.{place}.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
