"""What rows on quantization share, whichever engine quantizes."""

import copy
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from .._cell import Cell
from .._spec import LayerSpec, Sample

if TYPE_CHECKING:  # checks load the room of the twins when they run
    from ...quantized import Report

__all__ = [
    "WEIGHTED",
    "Kept",
    "assert_close",
    "assert_copies_are_equal",
    "assert_weighted_is_int8",
    "calibration",
    "decibels",
    "trained_to_int8",
]

#: What holds nearly all weights of a network, and takes nearly all of its time.
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

T = TypeVar("T")


class Kept(Generic[T]):
    """A function of cells that keeps what it made for the layer at hand: calibrating takes the time of these rows."""

    def __init__(self, make: Callable[[Cell], T]) -> None:
        self._make = make
        self._spec: LayerSpec | None = None
        self._made: list[tuple[Sample, str, T]] = []

    def __call__(self, cell: Cell) -> T:
        if cell.spec is not self._spec:
            self._spec, self._made = cell.spec, []
        for sample, variant, made in self._made:
            if sample is cell.sample and variant == cell.variant:
                return made
        torch.manual_seed(0)  # whichever row comes first
        made = self._make(cell)
        self._made.append((cell.sample, cell.variant, made))
        return made


def calibration(sample: Sample) -> list[Tensor]:
    """Two batches to calibrate or to train with."""
    rows = 32 if len(sample.shape) > 2 else 1024  # about the same number of values to observe
    return [torch.randn((rows, *sample.shape[1:])) for _ in range(2)]


def decibels(expected: Tensor, got: Tensor) -> float:
    """Signal to quantization noise, infinite where there is none."""
    expected, got = expected.detach().double(), got.detach().double()
    if torch.equal(expected, got):
        return float("inf")
    return float(10 * torch.log10(expected.square().sum() / (expected - got).square().sum()))


def assert_close(got: Tensor, expected: Tensor, bound: float, where: str) -> None:
    noise = decibels(expected, got)
    assert noise >= bound, f"{noise:.1f} dB {where}, at least {bound} are asked for"


def assert_weighted_is_int8(layer: nn.Module, report: "Report") -> None:
    """The report has a row for each convolution and projection of the float layer, and says that it became int8."""
    runs_in = {row.path: row.runs_in for row in report.rows}
    left = [
        path for path, module in layer.named_modules() if isinstance(module, WEIGHTED) and runs_in.get(path) != "int8"
    ]
    assert not left, f"left in float: {left} of\n{report}"


def _train(model: nn.Module, batch: Tensor) -> None:
    """A step with gradients that are finite, and of which something came."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert before, "nothing to train"
    torch.manual_seed(1)  # random layers draw the same, wherever the training is resumed
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(batch).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"
    optimizer.step()
    optimizer.zero_grad()
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)), "nothing was trained"


def trained_to_int8(model: Any, anew: Any, batches: list[Tensor]) -> Any:
    """The int8 form of a prepared model after some training; one that was resumed on the way becomes the same."""
    from ... import quantized

    _train_and_resume(model, anew, batches)
    converted = []
    for prepared in (model, anew):
        quantized.freeze(prepared)
        converted.append(quantized.convert(prepared))
    x = torch.cat(batches)
    assert torch.equal(converted[1](x), converted[0](x)), "resumed from its state, int8 gives other values"
    return converted[0]


def assert_copies_are_equal(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    """A deep copy gives the bits of an int8 model, and so does another that loads its state dict from a file."""
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected), "the deep copy gives other values"
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    state.seek(0)
    assert not torch.equal(other(x), expected), "nothing to load"
    other.load_state_dict(torch.load(state, weights_only=True), strict=True)
    assert torch.equal(other(x), expected), "the state dict gives other values"


def _train_and_resume(model: nn.Module, anew: nn.Module, batches: list[Tensor]) -> None:
    """Trains for a step, saves, and goes on in two: itself, and one prepared anew that loads what was saved."""
    _train(model, batches[0])
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    anew.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    for batch in batches[1:]:
        _train(model, batch)
        _train(anew, batch)
    states = model.state_dict(), anew.state_dict()
    assert list(states[0]) == list(states[1]), "resumed from its state, it has other keys"
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), f"resumed from its state, {key} has other values"
