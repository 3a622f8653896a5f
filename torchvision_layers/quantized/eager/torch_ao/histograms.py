"""Observers of activations by a histogram, of all values or of those up to a cap."""

from typing import Any

import torch.ao.quantization as taoq
from torch import Tensor

from ...finite import FiniteValues
from ...range_search import FastRangeSearch
from ...steps import SMALLEST_STEP

__all__ = ["HistogramObserver", "limited_observer"]


class HistogramObserver(FiniteValues, FastRangeSearch, taoq.HistogramObserver):
    """Observes a range that leaves out rare large values if rounding the others gains from it."""


class _Limited:
    """Mixed into an observer of values that a :class:`ChannelCap` clamps afterwards: larger ones do not count."""

    def __init__(self, *, largest: float, **options: Any) -> None:
        super().__init__(**options)
        self.largest = largest

    def forward(self, x_orig: Tensor) -> Tensor:
        super().forward(x_orig.clamp(max=self.largest))  # type: ignore[misc]
        return x_orig


class _LimitedHistogram(_Limited, HistogramObserver):
    pass


class _LimitedAverage(_Limited, taoq.MovingAverageMinMaxObserver):
    pass


def limited_observer(is_qat: bool, largest: float) -> object:
    """Observes a range that ends at the largest cap."""
    if is_qat:
        shared = {"quant_min": 0, "quant_max": 255, "eps": SMALLEST_STEP}
        return taoq.FakeQuantize.with_args(observer=_LimitedAverage, largest=largest, **shared)
    return _LimitedHistogram.with_args(largest=largest, reduce_range=False, eps=SMALLEST_STEP)
