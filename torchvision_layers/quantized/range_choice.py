"""Chooses a rule for the range of each observer by the error that it causes, in both engines."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._utils.inputs import Inputs
from .._utils.outputs import outputs_of
from .._utils.structure import flatten, rebuild
from .range_search import FastRangeSearch
from .ranges import RULES, RangeRule

__all__ = ["CalibrationRanges", "choose_ranges", "not_observing", "places_of", "rounding_activations"]

#: Images that ``"auto"`` tries its rules on: the outputs for more would hardly differ.
_IMAGES = 32

#: A rule that clips must have an error this much smaller than that of ``"minmax"``, because images to come exceed the
#: range by more than a few batches show: 0.25 dB.
_CLEARLY = 10**0.025

#: Rules that were chosen for each observer must have an error this much smaller than that of a single rule, because
#: they were chosen on the same few batches: 0.5 dB.
_MORE_CLEARLY = 10**0.05

#: Operators that only move values, so that rounding can as well happen after them.
_MOVES = {"_unsafe_view", "clone", "constant_pad_nd"}


class CalibrationRanges:
    """The rule of the ranges in one calibration.

    ``"auto"`` compares its rules on batches that the ranges compared do not come from, because a rule that clips looks
    best on the values that it was fitted to. These batches run last, and then count as all others do.
    """

    def __init__(self, rule: RangeRule) -> None:
        self._rule = rule
        self._held = list[Inputs]()
        self._places: dict[int, _Place] | None = None
        #: The prepared model, whose observers get the rule.
        self.model: nn.Module | None = None

    def watch(self, batches: Iterator[Inputs]) -> Iterator[Inputs]:
        """The same batches, in another order with ``"auto"``."""
        if self._rule != "auto":
            yield from batches
            return
        first, missing = next(batches, None), _IMAGES
        if first is None:  # the reader of the batches names this error
            return
        copied = _copy(first)
        yield first
        for i, batch in enumerate(batches):
            if i % 2 == 0 and missing > 0:
                self._held.append(_copy(batch))
                missing -= next((len(tensor) for tensor in batch.tensors() if tensor.dim()), 1)
            else:
                yield batch
        if self._held:
            assert self.model is not None
            self._places = places_of(self.model)
            yield from map(_copy, self._held)
        else:
            self._held = [copied]

    def apply(self) -> None:
        """Gives the observers of the model, which has run on the batches, their rules, in place."""
        assert self.model is not None
        if self._rule == "auto":
            choose_ranges(self.model, self._held, self._places or places_of(self.model))
            return
        for module in self.model.modules():
            if isinstance(module, FastRangeSearch):
                module.rule = self._rule


def _copy(batch: Inputs) -> Inputs:
    return batch.map(lambda tensor: tensor.detach().clone())  # a forward may write


@torch.no_grad()
def choose_ranges(model: nn.Module, batches: Sequence[Inputs], places: dict[int, "_Place"]) -> None:
    """Gives each observer of a prepared model the rule with the least error, in place.

    The error is that of the operators that read the rounded tensor, so clipped values count by what they do there. The
    choices are then rounded all at once. Unless they have clearly less error at the outputs of the model than each
    single rule for all observers, the best single rule is taken. ``"minmax"`` needs no more than a similar error.

    Args:
        model: a model in eval mode that has run on the batches of the calibration.
        batches: batches to compare the rules on.
        places: the observers with their steps, of these batches or others.
    """
    observers = _observers_of(model)
    comparison = _Comparison(places)
    with _probing(observers, comparison.mark):
        expected = []
        for batch in batches:
            with comparison:
                expected.append(outputs_of(model, batch))
            for output in expected[-1]:
                comparison.read(output)
    comparison.unmark()
    best = {key: place.best() for key, place in places.items()}
    choices = [*(dict.fromkeys(places, i) for i in range(len(RULES))), best]
    errors = [_error(model, batches, expected, observers, places, choice) for choice in choices]
    chosen, mixed, safe = errors.index(min(errors[:-1])), len(RULES), RULES.index("minmax")
    if _MORE_CLEARLY * errors[mixed] < errors[chosen]:
        chosen = mixed
    if errors[safe] <= _CLEARLY * errors[chosen]:
        chosen = safe
    for key, i in choices[chosen].items():
        places[key].observer.rule = RULES[i]


def places_of(model: nn.Module) -> dict[int, "_Place"]:
    """The observers of a model that have seen values, by their ids, with the steps that each rule gives them now."""
    return {id(observer): _Place(observer) for observer in _calibrated(_observers_of(model))}


def _observers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FastRangeSearch)]


def _calibrated(observers: list[Any]) -> list[Any]:
    """The observers that have seen values."""
    return [observer for observer in observers if bool(observer.min_val.isfinite().all())]


def _steps(observer: Any) -> tuple[float, int]:
    """The scale and zero point by the rule of an observer."""
    scale, zero_point = observer.calculate_qparams()
    return float(scale), int(zero_point)


class _Place:
    """An observer, the steps that each rule gives it, and the errors that they cause."""

    def __init__(self, observer: Any) -> None:
        self.observer = observer
        self.qparams: list[tuple[float, int]] = []
        rule = observer.rule
        for observer.rule in RULES:
            self.qparams.append(_steps(observer))
        observer.rule = rule
        #: The errors of the operators that read the tensor.
        self.errors = dict.fromkeys(self.qparams, 0.0)

    def rounded(self, tensor: Tensor, qparams: tuple[float, int]) -> Tensor:
        return _rounded(self.observer, tensor, qparams)

    def best(self) -> int:
        """The index of the best rule."""
        return min(range(len(RULES)), key=lambda i: self.errors[self.qparams[i]])


def _rounded(observer: Any, tensor: Tensor, qparams: tuple[float, int]) -> Tensor:
    scale, zero_point = qparams
    ends = observer.quant_min - zero_point, observer.quant_max - zero_point
    return tensor.mul(1 / scale).round_().clamp_(*ends).mul_(scale)  # faster than torch.fake_quantize


class _Comparison(TorchDispatchMode):
    """Runs each operator that reads an observed tensor again with this tensor rounded by each rule."""

    def __init__(self, places: dict[int, _Place]) -> None:
        super().__init__()
        self.places = places
        self._marked: list[ref[Tensor]] = []

    def mark(self, observer: Any, tensor: Tensor) -> Tensor:
        """Called in place of an observer."""
        place = self.places.get(id(observer))
        if place is not None and tensor.numel():
            self._mark(tensor, {*getattr(tensor, "read_places", ()), place})
        return tensor

    def read(self, output: Any) -> None:
        """Compares an output of the model, which its caller reads."""
        for place in getattr(output, "read_places", ()):
            for qparams in place.errors:
                place.errors[qparams] += _relative_error(place.rounded(output, qparams), output)

    def _mark(self, tensor: Any, places: set[_Place]) -> None:
        tensor.read_places = places
        self._marked.append(ref(tensor))

    def unmark(self) -> None:
        """Forgets all tensors, some of which may be parameters."""
        for marked in self._marked:
            tensor: Any = marked()
            if tensor is not None:
                tensor.read_places = set()
        self._marked.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        tensors, template = flatten((args, kwargs or {}))
        marked = [(i, place) for i, tensor in enumerate(tensors) for place in getattr(tensor, "read_places", ())]
        if not marked:
            return func(*args, **(kwargs or {}))
        is_move = func.is_view or func._schema.name.partition("::")[2] in _MOVES
        writes = func._schema.is_mutable
        results = []
        for i, place in [] if is_move else marked:
            for qparams in place.errors:
                changed = [tensor.clone() for tensor in tensors] if writes else list(tensors)
                changed[i] = place.rounded(tensors[i], qparams)
                changed_args, changed_kwargs = rebuild(template, changed)
                results.append((place, qparams, flatten(func(*changed_args, **changed_kwargs))[0]))
        output = func(*args, **(kwargs or {}))
        outputs = flatten(output)[0]
        for place, qparams, result in results:
            if outputs and outputs[0].is_floating_point() and result[0].shape == outputs[0].shape:
                place.errors[qparams] += _relative_error(result[0], outputs[0])
        if writes:  # the values are others now
            for i, _ in marked:
                tensors[i].read_places = set()
        elif is_move:
            for tensor in outputs:
                self._mark(tensor, {place for _, place in marked})
        return output


@contextmanager
def not_observing(model: nn.Module) -> Iterator[None]:
    """Within the context, the observers of a prepared model return their tensors as they are."""
    with _probing(_observers_of(model), lambda _, tensor: tensor):
        yield


@contextmanager
def rounding_activations(model: nn.Module) -> Iterator[None]:
    """Within the context, the observers of a prepared model return their tensors rounded, as int8 will hold them."""
    observers = _observers_of(model)
    with _rounding(observers, {id(observer): _steps(observer) for observer in _calibrated(observers)}):
        yield


@contextmanager
def _rounding(observers: Sequence[Any], qparams: dict[int, tuple[float, int]]) -> Iterator[None]:
    """Within the context, observers round their tensors, if there are steps for them by id."""

    def rounded(observer: Any, tensor: Tensor) -> Tensor:
        own = qparams.get(id(observer))
        return tensor if own is None or not tensor.numel() else _rounded(observer, tensor, own)

    with _probing(observers, rounded):
        yield


@contextmanager
def _probing(observers: Sequence[Any], probe: Any) -> Iterator[None]:
    for observer in observers:
        observer.probe = probe
    try:
        yield
    finally:
        for observer in observers:
            observer.probe = None


def _error(
    model: nn.Module,
    batches: Sequence[Inputs],
    expected: Sequence[Sequence[Tensor]],
    observers: Sequence[Any],
    places: dict[int, _Place],
    choice: dict[int, int],
) -> float:
    """The error at the outputs of the model if all tensors are rounded, each by the rule of its observer."""
    error = 0.0
    with _rounding(observers, {key: place.qparams[choice[key]] for key, place in places.items()}):
        for batch, outputs in zip(batches, expected, strict=True):
            for output, original in zip(outputs_of(model, batch), outputs, strict=False):
                if original.is_floating_point() and output.shape == original.shape:
                    error += _relative_error(output, original)
    return error if math.isfinite(error) else math.inf


def _relative_error(tensor: Tensor, expected: Tensor) -> float:
    power = float(torch.linalg.vector_norm(expected)) ** 2
    if not math.isfinite(power):  # a mask has infinities
        is_finite = expected.isfinite()
        tensor, expected = tensor[is_finite], expected[is_finite]
        power = float(torch.linalg.vector_norm(expected.double())) ** 2
    return float(torch.linalg.vector_norm(tensor - expected)) ** 2 / power if power else 0.0
