"""Channels, depth and rates of stochastic depth of scaled models."""

from collections.abc import Sequence
from math import ceil, isfinite

from torchvision_layers import nn as tnn

__all__ = ["check_multipliers", "rates_below", "round_channels", "scale_channels", "scale_depth"]


def check_multipliers(width_mult: float, depth_mult: float) -> None:
    """Raises ``ValueError`` unless both multipliers are positive and finite."""
    for argument, value in (("width_mult", width_mult), ("depth_mult", depth_mult)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value <= 0:
            raise ValueError(f"{argument} must be a positive and finite number; got {value!r}")


def scale_channels(channels: int, width_mult: float) -> int:
    """The nearest integer number of channels, at least one."""
    return max(1, round(channels * width_mult))


def scale_depth(blocks: int, depth_mult: float) -> int:
    """The number of blocks, rounded up so that no stage is empty."""
    return ceil(blocks * depth_mult)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, or the next one if rounding would lose over a tenth of the channels."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def rates_below(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of stochastic depth as in torchvision's EfficientNet: the last block has less than ``rate``."""
    return tnn.stochastic_depth_schedule(rate, [*depths, 1])[:-1]
