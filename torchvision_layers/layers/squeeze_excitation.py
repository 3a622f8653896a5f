"""Channel attention computed from globally pooled features."""

import torch
import torch.fx
from torch import Tensor, nn

from .._utils.checks import check_floating, check_input, check_int
from .._utils.construct import Builder, LayerArgument

__all__ = ["SqueezeExcitation"]


@torch.fx.wrap  # stays one node in a traced graph, so that the choice between dtypes survives
def _mean_of_pixels(input: Tensor) -> Tensor:
    """Mean over height and width whose gradient is an expanded view; torch's mean materializes it for every pixel."""
    if input.is_quantized:  # quantized tensors have no sum
        return nn.functional.adaptive_avg_pool2d(input, 1)
    if input.dtype == torch.float16 or input.dtype == torch.bfloat16:
        return input.mean((2, 3), keepdim=True)  # a half-precision sum could overflow
    return input.sum((2, 3), keepdim=True) / (input.shape[2] * input.shape[3])


class PixelMean(nn.Module):
    """The folded form of :class:`GlobalAvgPool2d`: a single ``mean``, for which every runtime has a kernel."""

    def forward(self, input: Tensor) -> Tensor:
        return input.mean((2, 3), keepdim=True)


class GlobalAvgPool2d(nn.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d(1)`` with a faster backward pass."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, input: Tensor) -> Tensor:
        return _mean_of_pixels(input)

    def folded(self) -> nn.Module:
        """The same mean as a single operation."""
        return PixelMean()


class SqueezeExcitation(nn.Module):
    r"""Scales each channel by a gate computed from all channel means: :math:`y = x \cdot \sigma(W_2 \delta(W_1 z))`.

    From `Squeeze-and-Excitation Networks <https://arxiv.org/abs/1709.01507>`_ (eq. 2 to 4); :math:`z` is the mean of
    each channel. Drop-in for ``torchvision.ops.SqueezeExcitation``: call signatures and checkpoints work unchanged.

    Args:
        input_channels: channels of the input and of the output.
        squeeze_channels: channels between the two pointwise convolutions.
        activation: :math:`\delta`. Default: ``nn.ReLU``.
        scale_activation: :math:`\sigma`. Default: ``nn.Sigmoid``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied. Errors: ``TypeError`` for an argument of the wrong
    type; ``ValueError`` for a number of channels below 1, or an input without pixels, whose mean would be NaN.

    Shape: input and output are both :math:`(N, C, H, W)`, where :math:`C` is ``input_channels``.

    Examples::

        >>> tnn.SqueezeExcitation(16, 4)(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: LayerArgument = nn.ReLU,
        scale_activation: LayerArgument = nn.Sigmoid,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_channels = check_int("input_channels", input_channels)
        self.squeeze_channels = check_int("squeeze_channels", squeeze_channels)
        self.out_channels = self.input_channels
        self.reduction = 1
        build = Builder(device, dtype)
        self.avgpool = GlobalAvgPool2d()
        self.fc1 = nn.Conv2d(input_channels, squeeze_channels, 1, device=device, dtype=dtype)
        self.fc2 = nn.Conv2d(squeeze_channels, input_channels, 1, device=device, dtype=dtype)
        self.activation = build.activation("activation", activation, squeeze_channels)
        self.scale_activation = build.activation("scale_activation", scale_activation, input_channels)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.input_channels, needs_pixels=True)
        check_floating(input)
        return self._gated(input, self._scale(input))

    def _scale(self, input: Tensor) -> Tensor:
        scale = self.activation(self.fc1(self.avgpool(input)))
        return self.scale_activation(self.fc2(scale))

    def _gated(self, input: Tensor, scale: Tensor) -> Tensor:
        return scale * input
