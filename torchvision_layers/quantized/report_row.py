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

    ``fused_with`` holds the paths of the modules that this one computes as well, or of the one that computes it.
    """

    path: str
    before: str
    after: str
    runs_in: str
    why: str
    fused_with: tuple[str, ...] = ()


def link_fused(rows: list[ReportRow]) -> tuple[ReportRow, ...]:
    """The rows, with each module that others are fused into naming these as well."""
    fused_into: dict[str, list[str]] = {}
    for row in rows:
        for path in row.fused_with:
            fused_into.setdefault(path, []).append(row.path)
    return tuple(replace(row, fused_with=(*row.fused_with, *fused_into.get(row.path, []))) for row in rows)
