"""Writing what a run records."""

from pathlib import Path

__all__ = ["write"]


def write(path: Path, text: str) -> None:
    """Under another name first: an interrupted run leaves the old record whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
