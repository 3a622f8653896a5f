"""A conformance check: its function, its variants, and the conditions in which it does not apply."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum

import torch

from ._case import Case
from ._modes import isolated_modes
from ._spec import LayerSpec, Sample

__all__ = ["Check", "NotApplicable", "Outcome", "Status", "Tier", "cases_of", "check", "run_case"]


class Tier(Enum):
    """How often a check runs."""

    EVERY_CHANGE = "every change"
    NIGHTLY = "nightly"


class Status(Enum):
    """The result of a case."""

    PASSED = "passed"
    FAILED = "failed"
    XFAILED = "failed as expected"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class NotApplicable:
    """A reason why a check does not apply, and the predicate that decides it."""

    reason: str
    holds: Callable[[Case], bool]
    #: Whether it depends on the device only. An expected failure of the check is then not expected either.
    is_of_device: bool = False


NO_VALUES = NotApplicable(
    "needs values, which meta tensors lack", lambda case: case.device.type == "meta", is_of_device=True
)


@dataclass(frozen=True)
class Check:
    """A conformance check. Its function raises if the layer fails, and its docstring states the requirement."""

    id: str
    function: Callable[[Case], None]
    tier: Tier
    variants: tuple[str, ...]
    not_applicable: tuple[NotApplicable, ...]
    #: Whether the check concerns the layer as a whole: it then runs with the first sample only.
    per_layer: bool
    #: Patterns and categories of warnings that the check itself causes.
    ignored_warnings: tuple[tuple[str, type[Warning]], ...]

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring."""
        return " ".join((self.function.__doc__ or "").split("\n\n")[0].split())


def check(
    id: str,
    *,
    tier: Tier = Tier.EVERY_CHANGE,
    variants: Sequence[str] = ("",),
    not_applicable: Sequence[NotApplicable] = (),
    per_layer: bool = False,
    reads_values: bool = True,
    ignored_warnings: Sequence[tuple[str, type[Warning]]] = (),
) -> Callable[[Callable[[Case], None]], Check]:
    """Decorator that makes a :class:`Check` from a function that takes a :class:`Case` and raises on failure.

    A check that reads values, or expects torch to check them, does not apply on the meta device.
    """
    reasons = ((NO_VALUES,) if reads_values else ()) + tuple(not_applicable)

    def decorate(function: Callable[[Case], None]) -> Check:
        return Check(id, function, tier, tuple(variants), reasons, per_layer, tuple(ignored_warnings))

    return decorate


@dataclass(frozen=True)
class Outcome:
    """The result of one case, and the reason if it did not pass."""

    check_id: str
    case_id: str
    status: Status
    reason: str = ""
    error: Exception | None = None


def cases_of(spec: LayerSpec, check: Check, device: str | torch.device = "cpu") -> list[Case]:
    """The cases of a layer in a check: each sample in each variant."""
    samples: Sequence[Sample] = spec.samples[:1] if check.per_layer else spec.samples
    return [Case(spec, sample, variant, torch.device(device)) for sample in samples for variant in check.variants]


def run_case(check: Check, case: Case) -> Outcome:
    """Run a check from a fixed seed and in modes of its own. The caller's seeds and modes do not change."""
    xfail = case.spec.xfails.get(check.id) or case.spec.xfails.get(f"{check.id}[{case.variant}]")

    def outcome(status: Status, reason: str = "", error: Exception | None = None) -> Outcome:
        return Outcome(check.id, case.id, status, reason, error)

    with ExitStack() as stack:
        stack.enter_context(isolated_modes(case.device))
        stack.enter_context(warnings.catch_warnings())
        for pattern, category in check.ignored_warnings:
            warnings.filterwarnings("ignore", pattern, category)
        torch.manual_seed(0)
        try:
            not_applicable = next((entry for entry in check.not_applicable if entry.holds(case)), None)
            if not_applicable is None:
                torch.manual_seed(0)
                check.function(case)
        except Exception as error:  # any error of the layer is a failure of the check
            if xfail:
                return outcome(Status.XFAILED, f"{xfail.reason} ({xfail.link})")
            return outcome(Status.FAILED, _first_line(error), error)
    reason = not_applicable.reason if not_applicable else ""
    if xfail and not (not_applicable and not_applicable.is_of_device):
        result = f"does not apply ({reason})" if not_applicable else "passes"
        unexpected = AssertionError(f"{result}, but is expected to fail: {xfail.reason} ({xfail.link})")
        return outcome(Status.FAILED, str(unexpected), unexpected)
    return outcome(Status.NOT_APPLICABLE, reason) if not_applicable else outcome(Status.PASSED)


def _first_line(error: Exception) -> str:
    """The type and the first line of a message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
