"""Rules that choose the range of an activation from a histogram of its values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.checks import check_number, did_you_mean

__all__ = ["RULES", "Percentile", "RangeRule", "check_ranges", "find_range"]

#: Steps between the ends of a range.
_STEPS = 255


@dataclass(frozen=True)
class Percentile:
    """A range that holds a share of the values: the same number is cut off at either end.

    Args:
        percent: the share, above 0 and at most 100. Default: ``99.99``.

    Errors: ``TypeError`` unless it is a number; ``ValueError`` for a number out of range.
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 0 < check_number("percent", self.percent) <= 100:
            raise ValueError(f"percent must be above 0 and at most 100, got {self.percent}")


#: ``"histogram"``, ``"minmax"``, ``"mse"`` or a percentile; as a setting also ``"auto"``.
RangeRule = str | Percentile

#: The rules that ``"auto"`` chooses from.
RULES: tuple[RangeRule, ...] = ("histogram", "minmax", Percentile(), "mse")


def check_ranges(ranges: object) -> RangeRule:
    """Returns the argument ``ranges`` of :func:`quantize`, with ``"percentile"`` as a :class:`Percentile`."""
    if ranges == "percentile":
        return Percentile()
    if isinstance(ranges, Percentile) or (isinstance(ranges, str) and ranges in (*RULES, "auto")):
        return ranges
    raise ValueError(
        "ranges must be 'histogram', 'minmax', 'percentile', 'mse', 'auto' or quantized.Percentile(percent), "
        f"got {ranges!r}{did_you_mean(ranges, ('histogram', 'minmax', 'percentile', 'mse', 'auto'))}"
    )


def find_range(rule: RangeRule, histogram: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range that a rule other than ``"histogram"`` chooses.

    Args:
        rule: the rule.
        histogram: how many values are in each of the bins, which have equal widths.
        low: the smallest value.
        high: the largest value.
    """
    if rule == "minmax" or bool(low >= high):
        return low, high
    counts = histogram.double()
    ends = (
        _percentiles(rule, counts) if isinstance(rule, Percentile) else _least_squares(counts, float(low), float(high))
    )
    width = (high.double() - low.double()) / len(counts)
    return (low + ends[0] * width).to(low), (low + ends[1] * width).to(high)


def _percentiles(rule: Percentile, counts: Tensor) -> tuple[float, float]:
    """The ends of the range in bins. Values are spread evenly within a bin."""
    cumulative = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    total, cut = cumulative[-1], (100 - rule.percent) / 200
    ends = []
    for count in (total * cut, total * (1 - cut)):
        index = int(torch.searchsorted(cumulative, count, right=True).clamp(1, len(counts))) - 1
        inside = counts[index]
        ends.append(index + (float((count - cumulative[index]) / inside) if inside > 0 else 0.0))
    return ends[0], ends[1]


def _least_squares(counts: Tensor, low: float, high: float) -> tuple[float, float]:
    """The edges of bins between which rounding and clipping add the least squared error.

    Rounding spreads errors evenly over a step. It adds none at zero and at the ends, where saturated values are.
    """
    zero = -low * len(counts) / (high - low)  # all in bins
    edges = torch.arange(len(counts) + 1, dtype=torch.float64, device=counts.device)
    centers = edges[:-1] + 0.5
    is_zero = (centers - zero).abs() <= 0.5
    inner = torch.cat([counts.new_zeros(1), counts.where(~is_zero, 0).cumsum(0)])
    powers = [torch.cat([counts.new_zeros(1), (counts * centers**power).cumsum(0)]) for power in range(3)]
    # A range holds zero, which an end may be.
    firsts, lasts = edges[edges < min(max(zero, 0), len(counts))], edges[edges > max(min(zero, len(counts)), 0)]
    firsts, lasts = firsts if len(firsts) else edges[:1], lasts if len(lasts) else edges[-1:]
    clipped_below = _squared_distances([power[firsts.long()] for power in powers], firsts)
    clipped_above = _squared_distances([power[-1] - power[lasts.long()] for power in powers], lasts)
    step = (lasts.clamp(min=zero) - firsts.clamp(max=zero)[:, None]) / _STEPS
    inside = inner[(lasts.long() - 1)] - inner[(firsts.long() + 1)][:, None]
    errors = step**2 / 12 * inside.clamp(min=0) + clipped_below[:, None] + clipped_above
    best = int(errors.argmin())
    return float(firsts[best // len(lasts)]), float(lasts[best % len(lasts)])


def _squared_distances(moments: list[Tensor], end: Tensor) -> Tensor:
    """The sum of the squared distances of values to an end, from their number, sum and sum of squares."""
    number, total, squares = moments
    return (squares - 2 * end * total + end**2 * number).clamp(min=0)
