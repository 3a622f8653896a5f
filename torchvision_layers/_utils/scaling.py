"""Puts a factor and a shift of each channel into the weights before or after them."""

import torch
from torch import Tensor, nn

__all__ = ["PROJECTIONS", "in_channels", "out_channels", "scale_inputs", "scale_outputs"]

#: What has a weight for each pair of channels, and perhaps a bias.
PROJECTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def in_channels(projection: nn.Module) -> int:
    """Channels of the input of a convolution or projection."""
    width = projection.in_features if isinstance(projection, nn.Linear) else projection.in_channels
    assert isinstance(width, int)
    return width


def out_channels(projection: nn.Module) -> int:
    """Channels of the output of a convolution or projection."""
    width = projection.out_features if isinstance(projection, nn.Linear) else projection.out_channels
    assert isinstance(width, int)
    return width


def scale_outputs(projection: nn.Module, scale: Tensor, shift: Tensor | None = None) -> None:
    """Makes a convolution or projection give ``scale * y + shift`` where it gave ``y``, in place.

    Its weights become new parameters in the type and the layout of the old ones, which others may hold.
    """
    weight, bias = _parameters(projection)
    scale = scale.detach().to(_wide(weight))
    _set(projection, "weight", weight * _along(projection, scale, is_output=True), weight)
    if bias is None and shift is None:
        return
    moved = scale.new_zeros(len(scale)) if bias is None else bias * scale
    _set(projection, "bias", moved if shift is None else moved + shift.detach(), weight)


def scale_inputs(projection: nn.Module, scale: Tensor) -> None:
    """Makes a convolution or projection give for ``x`` what it gave for ``scale * x``, in place."""
    weight, _ = _parameters(projection)
    scale = scale.detach().to(_wide(weight))
    _set(projection, "weight", weight * _along(projection, scale, is_output=False), weight)


def _parameters(projection: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = projection.weight, projection.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    return weight.detach(), None if bias is None else bias.detach()


def _wide(weight: Tensor) -> torch.dtype:
    """Half precision rounds once, at the end."""
    return torch.promote_types(weight.dtype, torch.float32)


def _set(projection: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    setattr(projection, name, nn.Parameter(value.to(like.dtype), requires_grad=False))


def _along(projection: nn.Module, scale: Tensor, is_output: bool) -> Tensor:
    """The factors in the shape in which they multiply the weight."""
    if isinstance(projection, nn.Linear):
        return scale[:, None] if is_output else scale
    assert isinstance(projection, nn.modules.conv._ConvNd)
    ones = (1,) * len(projection.kernel_size)
    if is_output != projection.transposed:  # the dimension that holds all channels
        return scale.reshape(-1, 1, *ones)
    # The other holds those of one group; the first counts through the groups.
    groups = projection.groups
    per_group = len(projection.weight) // groups
    return scale.reshape(groups, 1, -1, *ones).expand(-1, per_group, -1, *ones).reshape(groups * per_group, -1, *ones)
