"""One row of a report, for either engine."""

from dataclasses import dataclass, replace
from enum import Enum

__all__ = ["Int8Support", "ReportRow", "link_fused"]


class Int8Support(Enum):
    """How a module runs in an int8 model; the values are the reasons that a report gives."""

    CONVERTED = "has an int8 form"
    PASS_THROUGH = "takes int8 tensors as it is"
    FLOAT_FALLBACK = "has no int8 kernel"
    CONTAINER = "only calls its children"
    FLOAT_FORWARD = "its forward runs in float, layers below it by themselves"
    UNKNOWN = "is not known to the int8 engine"


@dataclass(frozen=True)
class ReportRow:
    """One module: its path, its class before and after, ``"int8"`` or ``"float"``, why, and its fusion partners.

    ``fused_with`` holds the paths of the modules that this one computes as well, or of the one that computes it. The
    other fields are ``None`` unless the report was made with batches, and for modules that another one computes.
    """

    path: str
    before: str
    after: str
    runs_in: str
    why: str
    fused_with: tuple[str, ...] = ()
    #: Signal over error of the output for exact inputs, in dB; infinite if the module adds no error.
    own_db: float | None = None
    #: Signal over error of the output in the int8 model, in dB.
    accumulated_db: float | None = None
    #: The smallest and the largest value of the output in the float model.
    observed_range: tuple[float, float] | None = None
    #: The smallest and the largest value that int8 represents; ``None`` if the output stays in float.
    int8_range: tuple[float, float] | None = None
    #: Share of the values in the float model outside the int8 range.
    clipped: float | None = None


def link_fused(rows: list[ReportRow]) -> tuple[ReportRow, ...]:
    """The rows, with each module that others are fused into naming these as well."""
    fused_into: dict[str, list[str]] = {}
    for row in rows:
        for path in row.fused_with:
            fused_into.setdefault(path, []).append(row.path)
    return tuple(replace(row, fused_with=(*row.fused_with, *fused_into.get(row.path, []))) for row in rows)
