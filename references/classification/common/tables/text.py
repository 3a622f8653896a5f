"""Tables as plain text."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligns cells in columns, the first ``left`` of them to the left. A shorter row ends in a cell of any length."""
    count = len(rows[0])
    widths = [max(len(row[i]) for row in rows if len(row) == count or i < len(row) - 1) for i in range(count)]
    aligned = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=False))
        aligned.append("  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in cells).rstrip())
    return "\n".join(aligned)
