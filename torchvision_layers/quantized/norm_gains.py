"""The factors by which training scales the weights in front of a batch norm, in both engines."""

import torch
from torch import Tensor

__all__ = ["scaling_factors"]

#: The smallest factor, relative to the largest and absolute.
_RATIO, _SMALLEST = 2.0**-10, 2.0**-20


def scaling_factors(weight: Tensor, variance: Tensor, eps: float) -> Tensor:
    """A factor per channel: the gain of the batch norm, with its running ``variance``, or a larger number.

    Weights are multiplied by the factors before they are rounded, so that they have the ranges of int8, and the result
    is divided by them. A gain of zero would divide by zero, and one that is almost zero would lose the digits of the
    weights. As each channel has steps of its own, the result hardly depends on the factors. They pass no gradients.
    """
    gains = (weight / torch.sqrt(variance + eps)).detach()
    magnitudes = gains.abs()
    smallest = magnitudes.amax() * _RATIO
    smallest = torch.where(smallest > _SMALLEST, smallest, 1.0)
    return torch.where(magnitudes > smallest, gains, smallest)
