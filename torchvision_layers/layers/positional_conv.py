"""A convolution plus a bias that depends on the position: the folded form of CoordConv."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .._utils.checks import check_input, is_tensor

__all__ = ["PositionMap", "PositionalConv2d", "coordinates"]

#: Number of maps in the cache of a :class:`PositionMap`.
_CACHE_SIZE = 16


def coordinates(input: Tensor, with_r: bool) -> Tensor:
    """Pixel coordinates of one image as channels: row, column and, with ``with_r``, distance from the centre."""
    rows, columns = input.shape[2], input.shape[3]
    i = _from_minus_one_to_one(input.new_ones(rows)).reshape(1, 1, -1, 1).expand(1, 1, rows, columns)
    j = _from_minus_one_to_one(input.new_ones(columns)).expand(1, 1, rows, columns)
    channels = [i, j, (i.square() + j.square()).sqrt()] if with_r else [i, j]
    return torch.cat(channels, 1).to(input.dtype)


def _from_minus_one_to_one(ones: Tensor) -> Tensor:
    """``len(ones)`` evenly spaced numbers, 0 if there is only one; at least float32, so that counting is exact."""
    position = (ones * ones.new_ones(1, dtype=torch.float32)).cumsum(0) - 1
    last = position[-1:]
    return (2 * position - last) / last.clamp(min=1)


class PositionMap(nn.Module):
    """Convolution of the pixel coordinates, cached for the most recent image sizes.

    The map is recomputed when the weight changes, except through ``weight.data``, which bypasses the version counter.

    Args:
        conv: convolution of the coordinate channels, without a bias.
        with_r: whether the distance from the centre is one of the channels.

    Shape: input :math:`(N, C, H, W)`, whose values are ignored; output :math:`(1, C_{out}, H', W')`.
    """

    __jit_ignored_attributes__ = ("_cache",)  # TorchScript cannot represent it

    def __init__(self, conv: nn.Conv2d, with_r: bool) -> None:
        super().__init__()
        self.conv = conv
        self.with_r = with_r
        self._cache = dict[tuple[Any, ...], tuple[Tensor, Tensor]]()

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting() or torch.compiler.is_compiling() or not is_tensor(input):
            return self.conv(coordinates(input, self.with_r))  # a compiled program serves many sizes
        return self._cached_map(input)

    @torch.jit.unused
    def _cached_map(self, input: Tensor) -> Tensor:
        weight = self.conv.weight
        image = torch.empty((1, 1, *input.shape[2:]), dtype=input.dtype, device=input.device)
        is_trained = torch.is_grad_enabled() and weight.requires_grad
        # Tensors made in inference mode have no version counter.
        if is_trained or weight.is_inference() or _is_autocast(input) or _is_transformed():
            return self.conv(coordinates(image, self.with_r))
        # Loading new values changes the version; assigning new data changes the address.
        key = (*input.shape[2:], input.dtype, input.device, weight, weight.data_ptr(), weight._version)
        if (entry := self._cache.get(key)) is not None:
            return entry[0]
        # Autograd could not record an addition of a tensor made in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            position_map = self.conv(coordinates(image, self.with_r))
        if type(position_map) is Tensor:  # a subclass, such as FakeTensor, may have no values
            for oldest in list(self._cache)[: 1 - _CACHE_SIZE]:
                self._cache.pop(oldest, None)  # another thread may have removed it
            # A reference to the weight keeps its address from being reused.
            self._cache[key] = position_map, weight.detach()
        return position_map

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._cache.clear()  # the maps have the old device and dtype
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


def _is_transformed() -> bool:
    """Whether a ``torch.func`` transform is active, whose tensors must not outlive it."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_autocast(input: Tensor) -> bool:
    device = input.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class PositionalConv2d(nn.Module):
    """A convolution plus a map that depends only on the size of the input.

    The folded form of ``experimental.nn.CoordConv2d``: the coordinate part of its weight gives the same result for all
    images of one size.

    Args:
        conv: convolution of the input.
        position: map that is added to the output of every image.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')` as for ``conv``.
    """

    def __init__(self, conv: nn.Conv2d, position: PositionMap) -> None:
        super().__init__()
        self.conv = conv
        self.position = position

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.conv.in_channels, needs_pixels=True)
        return self._add_position(self.conv(input), self.position(input))

    def _add_position(self, output: Tensor, position: Tensor) -> Tensor:
        return output.add_(position)
