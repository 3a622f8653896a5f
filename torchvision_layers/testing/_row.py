"""A row of the matrix: one check, the variants it runs in, and when it does not apply."""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch

from ._cell import Cell
from ._spec import LayerSpec, Sample

__all__ = ["NA", "Outcome", "Row", "Status", "Tier", "cells_of", "row", "run_cell"]


class Tier(Enum):
    """How often a row runs."""

    EVERY_CHANGE = "every change"
    NIGHTLY = "nightly"


class Status(Enum):
    """What came out of a cell."""

    PASSED = "passed"
    FAILED = "failed"
    XFAILED = "failed as expected"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class NA:
    """A proof that a row says nothing of a cell: the reason holds exactly where ``holds`` finds it so."""

    reason: str
    holds: Callable[[Cell], bool]


@dataclass(frozen=True)
class Row:
    """A check. It raises where the layer fails it, and says in its docstring what it asks for."""

    id: str
    check: Callable[[Cell], None]
    tier: Tier
    variants: tuple[str, ...]
    not_applicable: tuple[NA, ...]
    #: Whether it looks at the layer as a whole: it then runs with the first sample only.
    per_layer: bool
    #: Patterns of warnings that the check itself provokes, with their category.
    ignored_warnings: tuple[tuple[str, type[Warning]], ...]

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return " ".join((self.check.__doc__ or "").split("\n\n")[0].split())


def row(
    id: str,
    *,
    tier: Tier = Tier.EVERY_CHANGE,
    variants: Sequence[str] = ("",),
    not_applicable: Sequence[NA] = (),
    per_layer: bool = False,
    ignored_warnings: Sequence[tuple[str, type[Warning]]] = (),
) -> Callable[[Callable[[Cell], None]], Row]:
    """Makes a row of a function that takes a :class:`Cell` and raises where the layer fails."""

    def make(check: Callable[[Cell], None]) -> Row:
        return Row(id, check, tier, tuple(variants), tuple(not_applicable), per_layer, tuple(ignored_warnings))

    return make


@dataclass(frozen=True)
class Outcome:
    """What came out of one cell, and why."""

    row: str
    place: str
    status: Status
    why: str = ""
    error: Exception | None = None


@contextmanager
def _own_modes() -> Iterator[None]:
    dtype, numbers, arrays = torch.get_default_dtype(), random.getstate(), np.random.get_state()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(numbers)
        np.random.set_state(arrays)


def cells_of(spec: LayerSpec, row: Row) -> list[Cell]:
    """The cells of a layer in a row: each sample in each variant."""
    samples: Sequence[Sample] = spec.samples[:1] if row.per_layer else spec.samples
    return [Cell(spec, sample, variant) for sample in samples for variant in row.variants]


def run_cell(row: Row, cell: Cell) -> Outcome:
    """Runs one check from a seed and in modes of its own; the caller's stay as they were."""
    exemption = cell.spec.exempt.get(row.id) or cell.spec.exempt.get(f"{row.id}[{cell.variant}]")

    def outcome(status: Status, why: str = "", error: Exception | None = None) -> Outcome:
        return Outcome(row.id, cell.place, status, why, error)

    with ExitStack() as stack:
        stack.enter_context(_own_modes())
        stack.enter_context(warnings.catch_warnings())
        for pattern, category in row.ignored_warnings:
            warnings.filterwarnings("ignore", pattern, category)
        torch.manual_seed(0)
        try:
            reason = next((na.reason for na in row.not_applicable if na.holds(cell)), None)
            if reason is None:
                torch.manual_seed(0)
                row.check(cell)
        except Exception as error:  # whatever a layer raises is what its check found
            if exemption:
                return outcome(Status.XFAILED, f"{exemption.reason} ({exemption.link})")
            return outcome(Status.FAILED, _first_line(error), error)
    if exemption:
        what = "passes" if reason is None else f"does not apply ({reason})"
        orphan = AssertionError(f"{what}, and is expected to fail: {exemption.reason} ({exemption.link})")
        return outcome(Status.FAILED, str(orphan), orphan)
    return outcome(Status.PASSED) if reason is None else outcome(Status.NOT_APPLICABLE, reason)


def _first_line(error: Exception) -> str:
    """Type and first line of a message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
