"""Layers that read their input channels from the first batch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from .._utils.checks import check_dtype, check_groups, check_input, check_int, is_tensor
from .._utils.construct import Builder, LayerArgument
from .conv import ConvNormAct
from .squeeze_excitation import SqueezeExcitation

__all__ = ["LazyConvNormAct", "LazySqueezeExcitation"]


class _LazyLayer(LazyModuleMixin, nn.Module):
    """Mixed into the class of a layer whose convolutions are torch's lazy ones until the first batch."""

    def has_uninitialized_params(self) -> bool:
        """Whether a parameter in it still waits for its shape."""
        return any(is_lazy(parameter) for parameter in self.parameters())

    def _channels_of(self, input: Tensor, first: Any) -> int:
        """Channels of the first batch, which must be those of a checkpoint that came before it."""
        if not is_tensor(input):
            raise RuntimeError(f"{type(self).__name__} must see one batch before it is traced")
        check_dtype(input, first.weight)
        loaded = 0 if is_lazy(first.weight) else first.weight.shape[1] * first.groups
        check_input(input, 4, loaded or int(input.shape[1] if input.dim() > 1 else 0))
        return int(input.shape[1])


class LazyConvNormAct(_LazyLayer, ConvNormAct):
    r"""A :class:`ConvNormAct` that reads ``in_channels`` from the first batch, and is a :class:`ConvNormAct` from then.

    Its convolution is an ``nn.LazyConv2d`` before that: run one batch before parameters are optimized or shared among
    processes. A checkpoint of a :class:`ConvNormAct` may be loaded before, and settles the channels. There is no
    ``conv_layer``: torch has lazy forms of its own convolutions only.

    Args:
        out_channels: channels of the output.
        kernel_size: side of the kernel, or (height, width). Default: ``3``.
        stride: step of the kernel. Default: ``1``.
        padding: zeros on each side, or ``"same"`` or ``"valid"``. Default: ``None``, which keeps the size at stride 1;
            the kernel must then be odd.
        groups: blocks of channels that do not see each other; divides both widths. Default: ``1``.
        norm_layer: called with ``out_channels``; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace`` where it takes it; ``None`` for none. Default: ``nn.ReLU``.
        dilation: space between the elements of the kernel. Default: ``1``.
        inplace: asks the activation to work in place; ``None`` leaves it its own default. Default: ``True``.
        bias: bias in the convolution. Default: ``None``, where no normalization follows.
        device: where the parameters are made. Default: torch's.
        dtype: type of the parameters. Default: torch's.

    Errors: those of :class:`ConvNormAct`, at construction; at the first batch ``ValueError`` for one that is not 4-D,
    has no channels, or channels that ``groups`` does not divide. The layer is then as lazy as before.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')`.

    Examples::

        >>> layer = tnn.LazyConvNormAct(10)
        >>> layer(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 10, 32, 32])
        >>> type(layer).__name__, layer.in_channels
        ('ConvNormAct', 3)
    """

    cls_to_become = ConvNormAct

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        groups: int = 1,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.ReLU,
        dilation: int | tuple[int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            check_int("groups", groups),  # the fewest channels that there can be: checks all the rest
            out_channels,
            kernel_size,
            stride,
            padding,
            groups,
            norm_layer,
            activation_layer,
            dilation,
            inplace,
            bias,
            device=device,
            dtype=dtype,
        )
        conv: Any = self[0]
        self[0] = nn.LazyConv2d(
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            device=device,
            dtype=dtype,
        )
        self.in_channels = 0

    def initialize_parameters(self, input: Tensor) -> None:
        """Makes the weights for the channels of ``input``."""
        conv: Any = self[0]
        channels = check_int("in_channels", self._channels_of(input, conv))
        check_groups(conv.groups, in_channels=channels)
        with torch.inference_mode(False):  # or a dry run would leave weights that cannot be trained
            conv.initialize_parameters(input)
        self.in_channels = conv.in_channels = channels


class LazySqueezeExcitation(_LazyLayer, SqueezeExcitation):
    r"""A :class:`SqueezeExcitation` that reads ``input_channels`` from the first batch, and is one from then on.

    What :class:`LazyConvNormAct` says of parameters before the first batch holds here as well.

    Args:
        squeeze_channels: channels between the two projections.
        activation: after the first projection. Default: ``nn.ReLU``.
        scale_activation: after the second projection. Default: ``nn.Sigmoid``.
        device: where the parameters are made. Default: torch's.
        dtype: type of the parameters. Default: torch's.

    Errors: those of :class:`SqueezeExcitation`, at construction; at the first batch ``ValueError`` for one that is not
    4-D, has no channels or no pixels, or other channels than ``scale_activation`` was made for. The layer is then as
    lazy as before.

    Shape: input and output are both :math:`(N, C, H, W)`.

    Examples::

        >>> layer = tnn.LazySqueezeExcitation(4)
        >>> layer(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
        >>> type(layer).__name__, layer.input_channels
        ('SqueezeExcitation', 16)
    """

    cls_to_become = SqueezeExcitation

    def __init__(
        self,
        squeeze_channels: int,
        activation: LayerArgument = nn.ReLU,
        scale_activation: LayerArgument = nn.Sigmoid,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, squeeze_channels, activation, nn.Identity, device=device, dtype=dtype)
        build = Builder(device, dtype)
        self.scale_activation = build.module("scale_activation", scale_activation)
        self.fc1 = nn.LazyConv2d(squeeze_channels, 1, device=device, dtype=dtype)
        self.fc2 = nn.LazyConv2d(0, 1, device=device, dtype=dtype)  # its outputs are the channels, unknown as well
        self.input_channels = 0

    def initialize_parameters(self, input: Tensor) -> None:
        """Makes the weights for the channels of ``input``."""
        fc1: Any = self.fc1
        fc2: Any = self.fc2
        channels = check_int("input_channels", self._channels_of(input, fc1))
        check_input(input, 4, channels, needs_pixels=True)
        Builder().activation("scale_activation", self.scale_activation, channels)  # fits, or raises
        fc2.out_channels = channels
        with torch.inference_mode(False):
            fc1.initialize_parameters(input)
            fc2.initialize_parameters(torch.empty(0, self.squeeze_channels, 1, 1))
        self.input_channels = fc1.in_channels = channels
        fc2.in_channels = self.squeeze_channels
