"""A drawn model that was built, with its inputs and its outputs in float64."""

import copy
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchvision_layers._utils.inputs import Inputs
from torchvision_layers._utils.structure import flatten

from .rounding import Estimate, estimate_rounding
from .source import load

__all__ = ["Batches", "Subject", "outputs_of"]

BATCH = 4


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that a model returns; the inputs stay as they are."""
    with torch.no_grad():
        return flatten(inputs.map(Tensor.clone).run(model))[0]


class Subject:
    """One drawn model. Each use gets a copy of it, so that no check changes it for another."""

    def __init__(self, text: str, folder: Path) -> None:
        self.text, self.folder = text, folder
        self._module = load(text, folder)
        self._model: nn.Module = self._module.build()
        self.sizes: tuple[tuple[int, int], ...] = self._module.SIZES
        self._expected: dict[tuple[int, int], list[Tensor]] = {}
        #: Int8 models, or errors, by engine and backend, for checks that need the same.
        self.results: dict[tuple[str, str], Any] = {}

    @property
    def path(self) -> Path:
        """The file with the source."""
        return Path(str(self._module.__file__))

    def model(self) -> nn.Module:
        return copy.deepcopy(self._model)

    def build(self) -> nn.Module:
        """The model with new weights and the same state."""
        return self._module.build()

    def inputs(self, batch: int = BATCH, size: int = 0, seed: int = 0) -> Inputs:
        values = self._module.inputs(batch, size, seed)
        return Inputs(kwargs=values) if isinstance(values, dict) else Inputs(values)

    def batch(self, batch: int = BATCH, size: int = 0, seed: int = 0) -> Any:
        """The inputs as the batch of a data loader."""
        values = self._module.inputs(batch, size, seed)
        return values[0] if not isinstance(values, dict) and len(values) == 1 else values

    def expected(self, batch: int = BATCH, size: int = 0) -> list[Tensor]:
        """The outputs in float64."""
        if (batch, size) not in self._expected:
            self._expected[batch, size] = self.expected_of(self.inputs(batch, size))
        return self._expected[batch, size]

    def expected_of(self, inputs: Inputs) -> list[Tensor]:
        """The outputs for ``inputs`` in float64."""
        return outputs_of(self.model().double(), inputs.map(Tensor.double))

    @cached_property
    def estimate(self) -> Estimate:
        """The effect of rounding to int8 on the outputs, the largest for any size.

        On the first batch alone, a ReLU at the end may hide it.
        """
        estimate = estimate_rounding(self.model(), lambda model: outputs_of(model, self.inputs()))
        for size in range(1, len(self.sizes)):
            inputs = self.inputs(2, size)
            estimate.include(estimate_rounding(self.model(), lambda model, i=inputs: outputs_of(model, i)))
        return estimate

    @cached_property
    def is_stable(self) -> bool:
        """Whether the outputs are finite, of usual size, and hardly depend on rounding in float32."""
        for value, exact in zip(outputs_of(self.model(), self.inputs()), self.expected(), strict=True):
            largest = float(exact.abs().max())
            if not largest < 1e4 or not float((value - exact).abs().max()) <= 1e-4 * largest:
                return False
        return True


class Batches:
    """Calibration batches, and whether one after the first was requested.

    They contain all inputs that are compared, so that no value is out of range.
    """

    def __init__(self, subject: Subject, sizes: int) -> None:
        self.subject, self.sizes, self.is_calibrating = subject, sizes, False

    def __iter__(self) -> Iterator[Any]:
        yield self.subject.batch()
        self.is_calibrating = True
        for batch in (1, 3):
            yield self.subject.batch(batch)
        for size in range(1, self.sizes):
            yield self.subject.batch(2, size)
