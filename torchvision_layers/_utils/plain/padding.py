"""The padding that a layer does before its convolution, as modules of its own."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SamePadding", "constant_same_padding", "pad_same", "padding_module", "same_padding"]

_PADDINGS: dict[str, tuple[Any, ...]] = {
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}
_ZEROS: tuple[Any, ...] = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
_CONSTANTS: tuple[Any, ...] = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


class SamePadding(nn.Module):
    """Pads with zeros as TensorFlow's "same": the convolution after it gives an output of size / stride, rounded up.

    An odd total leaves one more zero at the end of a dimension than at its start.

    Args:
        kernel_size: size of the kernel in each dimension.
        stride: stride in each dimension.
        dilation: dilation in each dimension.

    Shape: input :math:`(N, C, *)`, with as many sizes after the channels as ``kernel_size`` has items.
    """

    def __init__(self, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = list(kernel_size), list(stride), list(dilation)

    def forward(self, input: Tensor) -> Tensor:
        return pad_same(input, self.kernel_size, self.stride, self.dilation)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


def pad_same(input: Tensor, kernel_size: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    """Pads like :class:`SamePadding`; exported programs compute the padding from the sizes of each image."""
    padding: list[int] = []
    for i in range(len(kernel_size)):  # torch.nn.functional.pad begins with the last dimension
        size, step = input.shape[-1 - i], stride[-1 - i]
        window = (kernel_size[-1 - i] - 1) * dilation[-1 - i] + 1
        total = ((size + step - 1) // step - 1) * step + window - size
        if window < step:  # otherwise nothing is negative, and formulas of sizes in exported programs stay short
            total = max(total, 0) if torch.jit.is_scripting() else _at_least_zero(total)
        padding += [total // 2, total - total // 2]
    return F.pad(input, padding)


def _at_least_zero(size: Any) -> Any:
    return size.clamp(min=0) if isinstance(size, Tensor) else torch.sym_max(size, 0)  # torch.jit.trace has tensors


def constant_same_padding(kernel_size: list[int], stride: list[int], dilation: list[int]) -> list[int]:
    """The zeros on each side of a dimension if they are the same for all images and on both sides; empty otherwise."""
    padding: list[int] = []
    for i in range(len(kernel_size)):
        total = (kernel_size[i] - 1) * dilation[i]
        if total % 2 != 0 or (total > 0 and stride[i] > 1):
            return []
        padding.append(total // 2)
    return padding


def same_padding(
    shape: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The padding of :class:`SamePadding` for inputs of this shape, in the order of ``torch.nn.functional.pad``."""
    padding = []
    for size, k, s, d in reversed(list(zip(shape[2:], kernel_size, stride, dilation, strict=True))):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        padding += [total // 2, total - total // 2]
    return padding


def padding_module(padding: Sequence[int], mode: str, value: Any) -> nn.Module | None:
    """The module of torch that pads so; ``None`` if there is none."""
    dims = len(padding) // 2
    if not 1 <= dims <= 3:
        return None
    module: nn.Module | None = None
    if mode == "constant":
        module = _CONSTANTS[dims - 1](tuple(padding), value) if value else _ZEROS[dims - 1](tuple(padding))
    elif mode in _PADDINGS:
        module = _PADDINGS[mode][dims - 1](tuple(padding))
    return module
