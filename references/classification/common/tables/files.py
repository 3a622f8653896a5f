"""The table of the files that a model was exported to."""

from collections.abc import Sequence
from typing import NamedTuple

from ..timing import LATENCY_BATCH
from .text import columns

CAPTION = (
    "Files that run without torchvision_layers: size; largest difference to the exported model, float or int8,\n"
    f"relative to its largest output; time relative to the float model in Python, batches of {LATENCY_BATCH} images."
)


class FileRow(NamedTuple):
    """One file, or the problem that prevented it; ``is_missing`` if the problem is a missing package or compiler."""

    model: str
    file: str
    size: int = 0
    difference: float = 0.0
    latency: float = 0.0
    problem: str = ""
    is_missing: bool = False


def files_table(rows: Sequence[FileRow]) -> str:
    """The rows as text; a problem replaces the figures."""
    cells: list[tuple[str, ...]] = [("model", "file", "size", "equal within", "time")]
    for row in rows:
        if row.problem:
            cells.append((row.model, row.file, " ".join(row.problem.split())))
        else:
            figures = (f"{row.size / 1e6:.1f} MB", f"{row.difference:.1e}", f"{row.latency:.2f}")
            cells.append((row.model, row.file, *figures))
    return columns(cells, left=2)


def failed_exports(rows: Sequence[FileRow]) -> list[str]:
    """One message per file whose format cannot hold the model; files that need a missing package do not count."""
    return [f"{row.model} was not written as {row.file}" for row in rows if row.problem and not row.is_missing]
