"""Atomic writes of records."""

from pathlib import Path

__all__ = ["write"]


def write(path: Path, text: str) -> None:
    """Write to a temporary file first, so that an interrupted run keeps the old record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
