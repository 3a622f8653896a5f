"""``check_layer``: run the conformance checks on any layer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._check import Outcome, Status, Tier, cases_of, run_case
from ._checks import CHECKS
from ._spec import BadArguments, BadInput, LayerSpec, Sample, XFail

__all__ = ["LayerCheckError", "Report", "check_layer"]


@dataclass(frozen=True)
class Report:
    """The outcomes of all cases of one layer. ``print`` shows one line per check."""

    name: str
    #: ``"stable"``, ``"experimental"``, or ``"proposed"`` for a layer of another package.
    status: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status is Status.FAILED)

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """Ids of the checks with a failure, in order, without duplicates."""
        return tuple(dict.fromkeys(outcome.check_id for outcome in self.failures))

    def __str__(self) -> str:
        lines = []
        for id in dict.fromkeys(outcome.check_id for outcome in self.outcomes):
            outcomes = [outcome for outcome in self.outcomes if outcome.check_id == id]
            by_status = {status: [o for o in outcomes if o.status is status] for status in Status}
            applicable = len(outcomes) - len(by_status[Status.NOT_APPLICABLE])
            if by_status[Status.FAILED]:
                result = f"FAILED {len(by_status[Status.FAILED])} of {applicable}"
            elif applicable == 0:
                result = "n/a"
            elif by_status[Status.XFAILED]:
                result = "as expected"
            else:
                result = f"passed {applicable}"
            notable = by_status[Status.FAILED] or by_status[Status.XFAILED]
            reason = f"{notable[0].case_id}: {notable[0].reason}" if notable else ""
            if applicable == 0:
                reason = outcomes[0].reason
            lines.append(f"{id:<16} {result:<14} {reason}".rstrip())
        counts = {status: sum(o.status is status for o in self.outcomes) for status in Status}
        total = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
        return "\n".join([f"{self.name} ({self.status}): {total}", *lines])


class LayerCheckError(AssertionError):
    """Raised if a layer fails checks; ``report`` holds all outcomes."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


def _check_ids(argument: str, ids: Collection[str], known: Collection[str]) -> None:
    for id in ids:
        if id not in known:
            raise ValueError(f"{argument} must name checks, got {id!r}; the checks are {', '.join(sorted(known))}")


def _existing(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:  # torch raises any of them
        raise ValueError(f"device must exist, got {str(device)!r} ({str(error).splitlines()[0]})") from error
    return torch.empty(0, device=place).device  # "cuda" becomes "cuda:0"


def check_layer(
    cls: Callable[..., nn.Module],
    samples: Sample | Sequence[Sample],
    *,
    bad_arguments: Sequence[BadArguments] = (),
    bad_inputs: Sequence[BadInput] = (),
    twin: type[nn.Module] | None = None,
    geometries: Any = None,
    expected_failures: Mapping[str, XFail] | None = None,
    rows: Collection[str] | None = None,
    slow: bool = False,
    device: str | torch.device = "cpu",
    raise_on_error: bool = True,
) -> Report:
    """Run the conformance checks of this package on your own layer.

    Args:
        cls: the layer: a class, or a function that returns a module.
        samples: arguments to build it with, each with the shape of an input.
        bad_arguments: arguments that the constructor must reject, applied over those of the first sample.
        bad_inputs: inputs that the call must reject.
        twin: its quantizable twin, with ``from_float`` and ``fuse_model``. Default: ``None``.
        geometries: a hypothesis strategy for :class:`ShapeExample`, to check output shapes. Default: ``None``.
        expected_failures: known failures, by ``"check"`` or ``"check[variant]"``. Strict: a pass is a failure.
        rows: ids of the checks to run. Default: all checks that are not slow.
        slow: also run the checks that compile or start processes. Default: ``False``.
        device: where the layer and its inputs are, such as ``"cuda"``. On ``"meta"``, checks that compare values do
            not apply. Default: ``"cpu"``.
        raise_on_error: raise if a check fails. Default: ``True``.

    Returns a :class:`Report`, which prints as a table of results with their reasons.

    Errors: :class:`LayerCheckError`, an ``AssertionError`` that holds the report, if a check fails; ``ValueError``
    for unknown ids, for an empty list of samples and for a device that does not exist; ``TypeError`` for an expected
    failure that is not an :class:`XFail`.

    The caller's random state, modes and default dtype do not change. Functions that ``torch.compile`` returned
    earlier are compiled again at their next call.

    Examples::

        >>> from torchvision_layers.testing import Sample, check_layer
        >>> sample = Sample("default", {"num_channels": 3}, (2, 3, 6, 7))
        >>> print(check_layer(tnn.LayerNorm2d, sample, rows=["gradcheck", "syncbn"]))
        LayerNorm2d (stable): 2 passed, 1 not applicable
        gradcheck        passed 2
        syncbn           n/a            has no batch normalization
    """
    if not __debug__:
        raise RuntimeError("check_layer relies on assert statements, which python -O removes: run without -O")
    spec = LayerSpec(
        cls,
        (samples,) if isinstance(samples, Sample) else tuple(samples),
        tuple(bad_arguments),
        tuple(bad_inputs),
        twin,
        geometries,
        dict(expected_failures or {}),
    )
    if not spec.samples:
        raise ValueError("samples must contain at least one Sample, got none")
    place = _existing(device)
    ids = {check.id: {check.id, *(f"{check.id}[{variant}]" for variant in check.variants)} for check in CHECKS}
    _check_ids("rows", rows or (), ids)
    _check_ids("expected_failures", spec.xfails, set().union(*ids.values()))
    for id, xfail in spec.xfails.items():
        if not isinstance(xfail, XFail):
            raise TypeError(f"expected_failures must map ids to XFail, got {xfail!r} for {id!r}")
    if rows is None:
        checks = [check for check in CHECKS if slow or check.tier is Tier.EVERY_CHANGE]
    else:
        checks = [check for check in CHECKS if check.id in rows]
    report = Report(
        spec.name,
        spec.status,
        tuple(run_case(check, case) for check in checks for case in cases_of(spec, check, place)),
    )
    if raise_on_error and report.failures:
        raise LayerCheckError(report)
    return report
