"""``check_layer``: the matrix for anybody's layer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ._row import Outcome, Status, Tier, cells_of, run_cell
from ._rows import ROWS
from ._spec import BadArguments, BadInput, LayerSpec, Sample, XFail

__all__ = ["LayerCheckError", "Report", "check_layer"]


@dataclass(frozen=True)
class Report:
    """What came out of all cells of one layer; ``print`` shows one line a row."""

    name: str
    #: ``"stable"``, ``"experimental"``, or ``"proposed"`` for a layer from elsewhere.
    status: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status is Status.FAILED)

    @property
    def failed_rows(self) -> tuple[str, ...]:
        """Ids of rows with a failure, each once, in order."""
        return tuple(dict.fromkeys(outcome.row for outcome in self.failures))

    def __str__(self) -> str:
        lines = []
        for id in dict.fromkeys(outcome.row for outcome in self.outcomes):
            outcomes = [outcome for outcome in self.outcomes if outcome.row == id]
            by_status = {status: [o for o in outcomes if o.status is status] for status in Status}
            ran = len(outcomes) - len(by_status[Status.NOT_APPLICABLE])
            if by_status[Status.FAILED]:
                word = f"FAILED {len(by_status[Status.FAILED])} of {ran}"
            elif ran == 0:
                word = "n/a"
            elif by_status[Status.XFAILED]:
                word = "as expected"
            else:
                word = f"passed {ran}"
            notable = by_status[Status.FAILED] or by_status[Status.XFAILED] or (outcomes if ran == 0 else [])
            why = f"{notable[0].place}: {notable[0].why}" if notable and ran else notable[0].why if notable else ""
            lines.append(f"{id:<16} {word:<14} {why}".rstrip())
        counts = {status: sum(o.status is status for o in self.outcomes) for status in Status}
        total = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
        return "\n".join([f"{self.name} ({self.status}): {total}", *lines])


class LayerCheckError(AssertionError):
    """A layer fails checks; ``report`` holds them all."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


def _check_ids(argument: str, ids: Collection[str], known: Collection[str]) -> None:
    for id in ids:
        if id not in known:
            raise ValueError(
                f"{argument} must name checks of the matrix, got {id!r}; there are {', '.join(sorted(known))}"
            )


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
    raise_on_error: bool = True,
) -> Report:
    """Runs the checks that every layer of this package passes on a layer of yours.

    Args:
        cls: the layer: a class, or a function that makes one.
        samples: ways to build it, each with the shape of an input.
        bad_arguments: what the constructor must refuse, over the arguments of the first sample.
        bad_inputs: what the call must refuse.
        twin: its quantizable twin, with ``from_float`` and ``fuse_model``. Default: ``None``.
        geometries: a strategy of hypothesis for :class:`Geometry`, to check shapes with. Default: ``None``.
        expected_failures: checks known to fail, by ``"row"`` or ``"row[variant]"``. Strict: passing is a failure.
        rows: ids of the checks to run. Default: all those that are not slow.
        slow: also runs checks that compile or start processes. Default: ``False``.
        raise_on_error: raises where a check fails. Default: ``True``.

    Returns the :class:`Report`, which prints as a table: what passed, what did not, and why.

    Errors: :class:`LayerCheckError`, an ``AssertionError`` that holds the report, where a check fails; ``ValueError``
    for ids that no row has, and for no sample; ``TypeError`` for an expected failure that is no :class:`XFail`.

    The caller's random numbers (those drawn on the CPU), modes and default type stay as they were. Functions that
    ``torch.compile`` made before are compiled again when they are next called.

    Examples::

        >>> from torchvision_layers.testing import Sample, check_layer
        >>> sample = Sample("default", {"num_channels": 3}, (2, 3, 6, 7))
        >>> print(check_layer(tnn.LayerNorm2d, sample, rows=["gradcheck", "syncbn"]))
        LayerNorm2d (stable): 2 passed, 1 not applicable
        gradcheck        passed 2
        syncbn           n/a            has no batch normalization
    """
    if not __debug__:
        raise RuntimeError("check_layer is made of assertions, which python -O leaves out")
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
        raise ValueError("samples must hold at least one, got none")
    places = {row.id: {row.id, *(f"{row.id}[{variant}]" for variant in row.variants)} for row in ROWS}
    _check_ids("rows", rows or (), places)
    _check_ids("expected_failures", spec.exempt, set().union(*places.values()))
    for id, xfail in spec.exempt.items():
        if not isinstance(xfail, XFail):
            raise TypeError(f"expected_failures must hold an XFail for each id, got {xfail!r} for {id!r}")
    chosen = [row for row in ROWS if (row.id in rows if rows is not None else slow or row.tier is Tier.EVERY_CHANGE)]
    outcomes = tuple(run_cell(row, cell) for row in chosen for cell in cells_of(spec, row))
    report = Report(spec.name, spec.status, outcomes)
    if raise_on_error and report.failures:
        raise LayerCheckError(report)
    return report
