"""Leaves modules out of int8 until a tolerance holds, those first whose errors change the outputs most."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._utils.checks import check_number
from .._utils.inputs import Inputs
from .._utils.modules import copy_module
from .._utils.outputs import outputs_of
from .._utils.progress import Progress
from .._utils.scaling import CONV_AND_LINEAR
from .exclusion import excluding_path
from .measurement import OutputMeasurement
from .report_row import ReportRow
from .sensitivity import output_decibels
from .trial import Trial
from .wrapper import QuantizableWrapper

__all__ = ["Tolerance", "keep_tolerance"]

Model = TypeVar("Model", bound=QuantizableWrapper)


class Tolerance:
    """How much an int8 model may differ from the float model.

    Args:
        tolerance: the least signal over error of the outputs in dB, or a function of a model that returns its accuracy.
        drop: how much lower the accuracy may be than that of the float model; only for a function.
    """

    def __init__(self, tolerance: object, drop: object) -> None:
        self._function: Callable[[nn.Module], float] | None = None
        if callable(tolerance):
            if drop is None:
                raise ValueError("drop must say how much accuracy tolerance may lose if it is a function, got None")
            self._function = tolerance
            self._drop = check_number("drop", drop)
            if self._drop < 0:
                raise ValueError(f"drop must not be negative, got {drop}")
        else:
            if drop is not None:
                raise ValueError(f"drop must be None unless tolerance is a function, got {drop!r}")
            self._least = check_number("tolerance", tolerance)

    @property
    def is_decibels(self) -> bool:
        """Whether it is a number of dB."""
        return self._function is None

    def __str__(self) -> str:
        return f"tolerance={self._least:g}" if self.is_decibels else f"drop={self._drop:g}"

    def start(self, model: nn.Module) -> None:
        """Measures the accuracy of the float model, if there is a function."""
        if self._function is not None:
            self._least = self._accuracy(copy_module(model).eval()) - self._drop

    def holds(self, value: float) -> bool:
        """Whether a value of an int8 model is good enough."""
        return value >= self._least - 1e-9 * abs(self._least)  # a difference of accuracies has a rounding error

    def value(self, int8: nn.Module, model: nn.Module, batches: Iterator[Inputs]) -> float:
        """The dB of an int8 model on the batches, or its accuracy."""
        if self._function is not None:
            return self._accuracy(int8)
        outputs, reference = OutputMeasurement(), copy_module(model).eval()
        for batch in batches:
            outputs.add(*[outputs_of(each, batch) for each in (reference, int8)])
        return outputs.decibels()

    def describe(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.2f} dB" if self.is_decibels else f"an accuracy of {value:g}"

    def least(self) -> str:
        """The least value with its unit."""
        return self.describe(self._least)

    def _accuracy(self, model: nn.Module) -> float:
        assert self._function is not None
        with torch.no_grad():
            value = self._function(model)
        return check_number("the result of tolerance", value.item() if isinstance(value, Tensor) else value)


def keep_tolerance(
    tolerance: Tolerance,
    model: nn.Module,
    batches: Callable[[], Iterator[Inputs]],
    quantize: Callable[[dict[str, str]], Model],
    measure: Callable[[Model], Iterable[ReportRow]],
    excluded: dict[str, str],
    progress: bool,
) -> Model:
    """An int8 model that keeps a tolerance, with as few of the worst modules in float as doubling and bisection find.

    Args:
        tolerance: what to keep.
        model: the float model.
        batches: the inputs for calibration, from the first each time.
        quantize: returns an int8 model with these modules in float.
        measure: returns the rows of an int8 model with their errors.
        excluded: the modules that are in float anyway.
        progress: shows a progress bar.

    Errors: ``RuntimeError`` if the tolerance cannot be kept; it says how near the best trial came.
    """
    tolerance.start(model)
    first = next(batches())
    multiplications = _multiplications(model, first)
    trials: list[Trial] = []
    bar = Progress(f"keeping {tolerance}", "trial", shown=progress)

    def attempt(left_out: list[str]) -> Model:
        names = excluded | {path: str(tolerance) for path in left_out}
        int8 = quantize(names)
        share = sum(count for path, count in multiplications.items() if excluding_path(path, names))
        # A copy, because oneDNN caches kernels for the first sizes that it meets.
        copied = int8 if int8.backend == "qnnpack" else copy.deepcopy(int8)
        value = tolerance.value(copied, model, batches())
        trials.append(Trial(tuple(left_out), value, share / max(sum(multiplications.values()), 1)))
        bar.update(f"{len(left_out)} left out, {tolerance.describe(value)}")
        return int8

    with bar:
        best = attempt([])
        if not tolerance.holds(trials[0].value):
            errors = _own_errors(measure(best), multiplications)
            try:
                effects = output_decibels(model, best.first_images(first, 4), errors)
            except Exception:  # of any type, if a forward takes no other batch size
                effects = output_decibels(model, first, errors)
            worst = sorted(effects, key=effects.__getitem__)[:-1]  # one stays in int8
            failing, count, holding = 0, 1, None
            while holding is None and failing < len(worst):
                count = min(count, len(worst))
                best = attempt(worst[:count])
                failing, holding = (failing, count) if tolerance.holds(trials[-1].value) else (count, None)
                count *= 2
            if holding is None:
                nearest = max(trials, key=lambda trial: trial.value)
                raise RuntimeError(
                    f"{tolerance} cannot be kept, which needs {tolerance.least()}: the nearest trial has "
                    f"{tolerance.describe(nearest.value)}, with {len(nearest.left_out)} of {len(worst)} modules and "
                    f"{nearest.float_share:.1%} of the multiplications in float"
                )
            while holding - failing > 1:
                middle = (failing + holding) // 2
                candidate = attempt(worst[:middle])
                if tolerance.holds(trials[-1].value):
                    best, holding = candidate, middle
                else:
                    failing = middle
    best.trials = tuple(trials)
    return best


def _own_errors(rows: Iterable[ReportRow], multiplications: dict[str, int]) -> dict[str, float]:
    """Signal over error of each convolution and linear layer in int8 by itself, in dB, by path."""
    errors: dict[str, float] = {}
    for row in rows:
        path = excluding_path(row.path, multiplications)
        if path is not None and row.own_db is not None and row.runs_in == "int8":
            errors[path] = min(errors.get(path, math.inf), row.own_db)
    return errors


def _multiplications(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """The number of multiplications of each convolution, linear layer and attention for these inputs, by path.

    Those of attention are those of its linear layers.
    """
    counts: dict[str, int] = {}
    copied = copy_module(model).eval()

    def count(path: str, module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            number = 4 * output[0].numel() * module.embed_dim
        else:
            is_transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            values = [*args, *kwargs.values()][0] if is_transposed else output
            number = values.numel() * module.weight[0].numel()
        counts[path] = counts.get(path, 0) + number

    for path, module in copied.named_modules():
        if path and isinstance(module, (*CONV_AND_LINEAR, nn.MultiheadAttention)):
            module.register_forward_hook(partial(count, path), with_kwargs=True)
    outputs_of(copied, inputs)
    return counts
