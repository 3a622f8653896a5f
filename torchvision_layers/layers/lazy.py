"""Layers that infer their input channels from the first batch."""

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
    """Mixin for layers whose convolutions are torch's lazy ones until the first batch."""

    def has_uninitialized_params(self) -> bool:
        """Whether a parameter of this layer or its children has no shape yet."""
        return any(is_lazy(parameter) for parameter in self.parameters())

    def _channels_of(self, input: Tensor, first: Any) -> int:
        """Channels of the first batch, which must match a checkpoint loaded before it."""
        if not is_tensor(input):
            raise RuntimeError(f"{type(self).__name__} must run once before it is traced: call model(batch)")
        check_dtype(input, first.weight)
        loaded = 0 if is_lazy(first.weight) else first.weight.shape[1] * first.groups
        check_input(input, 4, loaded or int(input.shape[1] if input.dim() > 1 else 0))
        return int(input.shape[1])


class LazyConvNormAct(_LazyLayer, ConvNormAct):
    r"""A :class:`ConvNormAct` that infers ``in_channels`` from the first batch.

    The first batch turns it into a :class:`ConvNormAct`. Until then its convolution is an ``nn.LazyConv2d``, so run one
    batch before you create an optimizer or share parameters among processes. You may load a checkpoint of a
    :class:`ConvNormAct` before the first batch; it then determines the channels. There is no ``conv_layer``, since
    torch has lazy versions of its own convolutions only.

    Args:
        out_channels: channels of the output.
        kernel_size: size of the kernel, an int or (height, width). Default: ``3``.
        stride: stride of the convolution. Default: ``1``.
        padding: zeros on each side, or ``"same"`` or ``"valid"``. Default: ``None``, which keeps the size at stride 1;
            the kernel must then be odd.
        groups: number of channel groups; divides ``in_channels`` and ``out_channels``. Default: ``1``.
        norm_layer: called with ``out_channels``; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        dilation: spacing between kernel elements. Default: ``1``.
        inplace: passed to the activation; ``None`` keeps the default of the activation. Default: ``True``.
        bias: whether the convolution has a bias. Default: ``None``, which adds one only if there is no normalization.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: as in :class:`ConvNormAct` at construction. The first batch raises ``ValueError`` if it is not 4-D, has no
    channels, or its channels are not divisible by ``groups``; the layer then remains lazy.

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
            check_int("groups", groups),  # the fewest possible channels, so that all other arguments are checked now
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
        """Creates the weights for the channels of ``input``."""
        conv: Any = self[0]
        channels = check_int("in_channels", self._channels_of(input, conv))
        check_groups(conv.groups, in_channels=channels)
        with torch.inference_mode(False):  # weights made in inference mode could never be trained
            conv.initialize_parameters(input)
        self.in_channels = conv.in_channels = channels


class LazySqueezeExcitation(_LazyLayer, SqueezeExcitation):
    r"""A :class:`SqueezeExcitation` that infers ``input_channels`` from the first batch.

    The first batch turns it into a :class:`SqueezeExcitation`. Until then, parameters and checkpoints behave as in
    :class:`LazyConvNormAct`.

    Args:
        squeeze_channels: channels between the two pointwise convolutions.
        activation: follows the first pointwise convolution. Default: ``nn.ReLU``.
        scale_activation: follows the second pointwise convolution. Default: ``nn.Sigmoid``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: as in :class:`SqueezeExcitation` at construction. The first batch raises ``ValueError`` if it is not 4-D,
    has no channels or pixels, or its channels do not match ``scale_activation``; the layer then remains lazy.

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
        self.fc2 = nn.LazyConv2d(0, 1, device=device, dtype=dtype)  # its output channels are unknown as well
        self.input_channels = self.out_channels = 0

    def initialize_parameters(self, input: Tensor) -> None:
        """Creates the weights for the channels of ``input``."""
        fc1: Any = self.fc1
        fc2: Any = self.fc2
        channels = check_int("input_channels", self._channels_of(input, fc1))
        check_input(input, 4, channels, needs_pixels=True)
        Builder().activation("scale_activation", self.scale_activation, channels)  # raises if they do not match
        fc2.out_channels = channels
        with torch.inference_mode(False):
            fc1.initialize_parameters(input)
            fc2.initialize_parameters(torch.empty(0, self.squeeze_channels, 1, 1))
        self.input_channels = self.out_channels = fc1.in_channels = channels
        fc2.in_channels = self.squeeze_channels
