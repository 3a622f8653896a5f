"""A convolution plus a map of where each pixel is: what is left of a CoordConv that is folded."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .._utils.checks import check_input, is_tensor

__all__ = ["PositionMap", "PositionalConv2d", "coordinates"]

#: Sizes of images for which a map is kept.
_KEPT = 16


def coordinates(input: Tensor, with_r: bool) -> Tensor:
    """The coordinates of the pixels of one image: row, column and, where asked for, distance from the centre."""
    rows, columns = input.shape[2], input.shape[3]
    i = _from_minus_one_to_one(input.new_ones(rows)).reshape(1, 1, -1, 1).expand(1, 1, rows, columns)
    j = _from_minus_one_to_one(input.new_ones(columns)).expand(1, 1, rows, columns)
    channels = [i, j, (i.square() + j.square()).sqrt()] if with_r else [i, j]
    return torch.cat(channels, 1).to(input.dtype)


def _from_minus_one_to_one(ones: Tensor) -> Tensor:
    """As many evenly spaced numbers, 0 if there is but one; of float32 where half precision could not count them."""
    position = (ones * ones.new_ones(1, dtype=torch.float32)).cumsum(0) - 1
    last = position[-1:]
    return (2 * position - last) / last.clamp(min=1)


class PositionMap(nn.Module):
    """The convolution of the coordinates of each pixel, kept for the sizes of the last images.

    A map is made anew when the weight was written to, but for writes through ``weight.data``, of which nobody knows.

    Args:
        conv: takes the channels of the coordinates; without a bias.
        with_r: whether one of them is the distance from the centre.

    Shape: input :math:`(N, C, H, W)`, of which only the size matters, output :math:`(1, C_{out}, H', W')`.
    """

    __jit_ignored_attributes__ = ("_kept",)  # it means nothing to TorchScript

    def __init__(self, conv: nn.Conv2d, with_r: bool) -> None:
        super().__init__()
        self.conv = conv
        self.with_r = with_r
        self._kept = dict[tuple[Any, ...], tuple[Tensor, Tensor]]()

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting() or torch.compiler.is_compiling() or not is_tensor(input):
            return self.conv(coordinates(input, self.with_r))  # a program serves more sizes than one
        return self._keep(input)

    @torch.jit.unused
    def _keep(self, input: Tensor) -> Tensor:
        weight = self.conv.weight
        image = torch.empty((1, 1, *input.shape[2:]), dtype=input.dtype, device=input.device)
        is_trained = torch.is_grad_enabled() and weight.requires_grad
        # Of a tensor of inference mode nobody notes when it is written to.
        if is_trained or weight.is_inference() or _is_mixed(input) or _is_transformed():
            return self.conv(coordinates(image, self.with_r))
        # Loading other values changes the version, giving the parameter other data the place.
        key = (*input.shape[2:], input.dtype, input.device, weight, weight.data_ptr(), weight._version)
        if (kept := self._kept.get(key)) is not None:
            return kept[0]
        # Made in inference mode, it could not be added where gradients are recorded.
        with torch.inference_mode(False), torch.no_grad():
            made = self.conv(coordinates(image, self.with_r))
        if type(made) is Tensor:  # and not of a mode that runs without numbers
            for oldest in list(self._kept)[: 1 - _KEPT]:
                self._kept.pop(oldest, None)  # another thread may have
            self._kept[key] = made, weight.detach()  # while it is held, no other data gets its place
        return made

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._kept.clear()  # of another device, or of weights in another type
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


def _is_transformed() -> bool:
    """Whether this runs below a transform of ``torch.func``, whose tensors mean nothing after it."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_mixed(input: Tensor) -> bool:
    device = input.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class PositionalConv2d(nn.Module):
    """A convolution plus a map that depends on the size of the input alone.

    What ``experimental.nn.CoordConv2d`` becomes when it is folded: the part of its weight that meets the coordinates
    gives the same for all images of a size.

    Args:
        conv: the convolution of the input.
        position: what is added to the output for every image.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')` as of ``conv``.
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
