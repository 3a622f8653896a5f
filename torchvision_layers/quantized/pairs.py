"""Bounds on the weights that x86 without VNNI instructions multiplies and adds in pairs, for both engines.

It adds two products of eight bits in sixteen. An input is at most 255, so two products with weights of the same sign
are at most ``255 * 128 = 32640`` if the weights sum to at most 128. The largest integer of 16 bits is 32767. Products
with weights of different signs cancel: each weight may have 127 steps.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .._utils.row_blocks import row_blocks

__all__ = ["PairLimits", "PairRange", "largest_pairs", "overflows"]

#: The largest sum of two weights of the same sign, and the largest weight, in steps.
_LARGEST_SUM, _LARGEST = 128, 127


def largest_pairs(weight: Tensor, any_order: bool) -> Tensor:
    """The largest magnitude in each channel, of a weight or of the sum of two with the same sign that are added.

    Args:
        weight: of a convolution or linear layer.
        any_order: whether a kernel may add any two weights. Kernels of FBGEMM have the weights of a channel in the
            order of their positions, each with all input channels, and add the first two, the next two, and so on.
            Those of onnxruntime do the same, except for depthwise convolutions, which they add in 32 bits.
    """
    return torch.cat([_largest_of_signs(rows, any_order) for rows in row_blocks(weight)])


def _largest_of_signs(weight: Tensor, any_order: bool) -> Tensor:
    weight = weight.unsqueeze(-1).flatten(2)
    rows = (weight if any_order else weight.mT).flatten(1)
    return _largest_sums(rows.clamp(min=0), any_order).maximum(_largest_sums(rows.neg().clamp_(min=0), any_order))


def _largest_sums(magnitudes: Tensor, any_order: bool) -> Tensor:
    if not any_order:
        return magnitudes[:, ::2].add(F.pad(magnitudes[:, 1::2], (0, magnitudes.shape[1] % 2))).amax(1)
    largest, index = magnitudes.max(1, keepdim=True)
    second = magnitudes.scatter_(1, index, 0).amax(1, keepdim=True)  # faster than topk
    return (largest + second).squeeze(1)


def overflows(weight: Tensor, any_order: bool) -> bool:
    """Whether the sum of two products with the weights of a channel can overflow, for a weight in steps."""
    return bool(weight.numel()) and int(largest_pairs(weight.to(torch.int16), any_order).max()) > _LARGEST_SUM


@dataclass(frozen=True)
class PairLimits:
    """The bounds of a weight in steps that the weights before it leave, in the form that :mod:`.gptq` calls.

    Args:
        channels: input channels of a group.
        positions: number of positions of the kernel.
        any_order: as for :func:`largest_pairs`.
    """

    channels: int
    positions: int
    any_order: bool

    def __call__(self, rounded: Tensor, column: int) -> tuple[Tensor, Tensor]:
        if self.any_order:
            others = rounded
        else:
            channel, position = divmod(column, self.positions)
            partner = (position * self.channels + channel) ^ 1
            position, channel = divmod(partner, self.channels)
            others = rounded[:, [channel * self.positions + position] if position < self.positions else []]
        zeros = rounded.new_zeros(len(rounded), 1)
        low, high = torch.cat([others, zeros], 1).aminmax(dim=1)
        return (-_LARGEST_SUM - low).clamp(min=-_LARGEST), (_LARGEST_SUM - high).clamp(max=_LARGEST)


class PairRange:
    """Mixed into an observer of weights per channel; bounds each two weights of one sign that a kernel adds.

    They sum to at most 127 steps, and to at most 128 after both are rounded.
    """

    any_order: ClassVar[bool] = False
    #: Whether the range stays as it is. The weights of a pair may be rounded to 128 steps together, one more than that.
    is_fixed = False

    min_val: Tensor
    max_val: Tensor

    def forward(self, x_orig: Tensor) -> Tensor:
        if not self.is_fixed:
            pair = largest_pairs(x_orig.detach(), self.any_order)
            self.min_val, self.max_val = -pair, pair
        return x_orig

    def limits(self, weight: Tensor) -> PairLimits:
        """The bounds for a weight of this shape that is rounded column by column."""
        return PairLimits(weight.shape[1], weight[0, 0].numel(), self.any_order)
