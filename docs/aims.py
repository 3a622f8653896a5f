"""The bound of each benchmark and what we aim for, as a table of the page on benchmarks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from cases import CASES, Case
from folded_cases import FOLDED_CASES

__all__ = ["table"]


def _cells(case: Case, note: str) -> tuple[str, ...]:
    options = "".join(f", ``{name}={value}``" for name, value in case.options.items())
    figures = [f"{aim:.2f}" if aim is not None else "–" for aim in case.aim[:2]]
    bound = f"``{next(iter(case.build()))}``"
    return f"``{case.layer.__name__}``{options}{note}", "×".join(map(str, case.shape)), bound, *figures


def table() -> str:
    """All cases, in the order in which they are measured."""
    rows = [("layer", "input", "bound", "inference", "training")]
    rows += [_cells(case, "") for case in CASES]
    rows += [_cells(case, ", folded") for case in FOLDED_CASES]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return "\n".join([*lines, ""])
