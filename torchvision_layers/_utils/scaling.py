"""Folds a scale and a shift per channel into the weights of convolutions and linear layers."""

import torch
from torch import Tensor, nn

__all__ = ["CONV_AND_LINEAR", "broadcastable", "in_channels", "out_channels", "scale_inputs", "scale_outputs"]

#: Modules with a weight per pair of input and output channels, and an optional bias.
CONV_AND_LINEAR = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def in_channels(layer: nn.Module) -> int:
    """Input channels of a convolution, or input features of a linear layer."""
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    assert isinstance(channels, int)
    return channels


def out_channels(layer: nn.Module) -> int:
    """Output channels of a convolution, or output features of a linear layer."""
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert isinstance(channels, int)
    return channels


def scale_outputs(layer: nn.Module, scale: Tensor, shift: Tensor | None = None) -> None:
    """Changes a convolution or linear layer in place so that it returns ``scale * y + shift`` instead of ``y``.

    Replaces the parameters, which other modules may share, by new ones of the same dtype and memory layout.
    """
    weight, bias = _parameters(layer)
    scale = scale.detach().to(_compute_dtype(weight))
    _set(layer, "weight", weight * broadcastable(layer, scale, is_output=True), weight)
    if bias is None and shift is None:
        return
    scaled = scale.new_zeros(len(scale)) if bias is None else bias * scale
    _set(layer, "bias", scaled if shift is None else scaled + shift.detach(), weight)


def scale_inputs(layer: nn.Module, scale: Tensor) -> None:
    """Changes a convolution or linear layer in place so that it multiplies its input by ``scale`` first."""
    weight, _ = _parameters(layer)
    scale = scale.detach().to(_compute_dtype(weight))
    _set(layer, "weight", weight * broadcastable(layer, scale, is_output=False), weight)


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    return weight.detach(), None if bias is None else bias.detach()


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """At least float32, so that half precision is rounded only once."""
    return torch.promote_types(weight.dtype, torch.float32)


def _set(layer: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    setattr(layer, name, nn.Parameter(value.to(like.dtype), requires_grad=False))


def broadcastable(layer: nn.Module, scale: Tensor, is_output: bool) -> Tensor:
    """``scale`` of the output or input channels in a shape that broadcasts against the weight."""
    if isinstance(layer, nn.Linear):
        return scale[:, None] if is_output else scale
    assert isinstance(layer, nn.modules.conv._ConvNd)
    ones = (1,) * len(layer.kernel_size)
    if is_output != layer.transposed:  # the dimension of the weight that has all channels
        return scale.reshape(-1, 1, *ones)
    # The other dimension has the channels of one group; the first one iterates over the groups.
    groups = layer.groups
    per_group = len(layer.weight) // groups
    return scale.reshape(groups, 1, -1, *ones).expand(-1, per_group, -1, *ones).reshape(groups * per_group, -1, *ones)
