"""How far values of an int8 model are from those of the float model, summed over batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .report_row import ReportRow

__all__ = ["Int8Range", "Measurement", "OutputMeasurement", "decibels"]


def decibels(signal: float, error: float) -> float:
    """The ratio of two powers in dB; infinite without an error, minus infinity if the error is not finite."""
    if not math.isfinite(error):
        return -math.inf
    return 10 * math.log10(max(signal, 1e-300) / error) if error > 0 else math.inf


@dataclass(frozen=True)
class Int8Range:
    """The numbers that an int8 tensor can hold: integers from ``low`` to ``high``, less a zero point, times a scale."""

    scale: float
    zero_point: int
    low: int
    high: int

    @classmethod
    def of(cls, tensor: Tensor) -> "Int8Range":
        """The range of a quantized tensor with one scale."""
        limits = {torch.quint8: (0, 255), torch.qint8: (-128, 127)}[tensor.dtype]
        return cls(tensor.q_scale(), tensor.q_zero_point(), *limits)

    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number."""
        return (self.low - self.zero_point) * self.scale, (self.high - self.zero_point) * self.scale

    def rounded(self, tensor: Tensor) -> Tensor:
        """``tensor`` rounded to the numbers of the range, and clipped to its limits."""
        return torch.fake_quantize_per_tensor_affine(tensor, self.scale, self.zero_point, self.low, self.high)

    def clipped(self, tensor: Tensor) -> int:
        """The number of values that do not round to a number of the range."""
        low, high = (limit + side * self.scale / 2 for limit, side in zip(self.limits(), (-1, 1), strict=True))
        return int(((tensor < low) | (tensor > high)).sum())


class Measurement:
    """The errors of the output of one module."""

    def __init__(self) -> None:
        self._signal = self._error = self._own_signal = self._own_error = 0.0
        self._has_own = False
        self._values = self._clipped = 0
        self._low, self._high = math.inf, -math.inf
        self._range: Int8Range | None = None

    def add(self, exact: Tensor, actual: Tensor, range: Int8Range | None) -> None:
        """Adds an output of the int8 model.

        Args:
            exact: the output in the float model.
            actual: the output in the int8 model, in float.
            range: that of the int8 output; ``None`` if it stays in float.
        """
        if not exact.numel():
            return
        low, high = exact.aminmax()
        self._low, self._high = min(self._low, float(low)), max(self._high, float(high))
        self._signal += _power(exact)
        self._error += _power(actual - exact)
        self._values += exact.numel()
        if range is not None:
            self._range = range
            self._clipped += range.clipped(exact)

    def add_own(self, exact: Tensor, own: Tensor) -> None:
        """Adds what the module returns in int8 for exact inputs."""
        self._has_own = True
        self._own_signal += _power(exact)
        self._own_error += _power(own - exact)

    def fill(self, row: ReportRow) -> ReportRow:
        """The row with these numbers."""
        if not self._values:
            return row
        return replace(
            row,
            own_db=decibels(self._own_signal, self._own_error) if self._has_own else None,
            accumulated_db=decibels(self._signal, self._error),
            observed_range=(self._low, self._high),
            int8_range=None if self._range is None else self._range.limits(),
            clipped=None if self._range is None else self._clipped / self._values,
        )


class OutputMeasurement:
    """The errors of the outputs of a whole model."""

    def __init__(self) -> None:
        self._signal = self._error = 0.0
        self._predictions = self._agreeing = 0

    def add(self, exact: Sequence[Any], actual: Sequence[Any]) -> None:
        """Adds the tensors that both models return for a batch."""
        scores = True
        for expected, output in zip(exact, actual, strict=True):
            if not expected.is_floating_point():
                continue
            is_finite = torch.isfinite(expected)  # not in a mask, for example
            self._signal += _power(expected[is_finite])
            self._error += _power((output - expected)[is_finite])
            if scores and expected.dim() in (2, 4) and expected.shape[1] > 1:
                agrees = output.argmax(1) == expected.argmax(1)
                self._predictions += agrees.numel()
                self._agreeing += int(agrees.sum())
            scores = False

    def decibels(self) -> float:
        """Signal over error of all outputs together."""
        return decibels(self._signal, self._error)

    def agreement(self) -> float | None:
        """The share of the images, or of their pixels, with the same class in the first output, if it has classes."""
        return self._agreeing / self._predictions if self._predictions else None


def _power(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
