"""One row of a report, whichever engine it is on."""

from dataclasses import dataclass, replace

__all__ = ["ReportRow", "with_hosts"]


@dataclass(frozen=True)
class ReportRow:
    """One module: its path, its class before and after, ``"int8"`` or ``"float"``, why, and what it is fused with.

    ``fused_with`` holds paths: of what is computed along, or of the one that computes this one along.
    """

    path: str
    before: str
    after: str
    runs_in: str
    why: str
    fused_with: tuple[str, ...] = ()


def with_hosts(rows: list[ReportRow]) -> tuple[ReportRow, ...]:
    """The rows, of which those that compute others along name these too."""
    guests: dict[str, list[str]] = {}
    for row in rows:
        for host in row.fused_with:
            guests.setdefault(host, []).append(row.path)
    return tuple(replace(row, fused_with=(*row.fused_with, *guests.get(row.path, []))) for row in rows)
