"""Formatting with ruff."""

import subprocess
import sys
from importlib.util import find_spec

__all__ = ["WIDTH", "formatted"]

WIDTH = 120
_OPTIONS = ["--quiet", "--isolated", f"--line-length={WIDTH}", "--target-version=py310", "-"]


def formatted(text: str, *, sort_imports: bool = False) -> str:
    """Formats source with ruff; returns it unchanged if ruff is not installed."""
    if find_spec("ruff") is None:
        return text
    commands = [["check", "--select=I", "--fix", "--exit-zero"]] if sort_imports else []
    for command in [*commands, ["format"]]:
        ruff = [sys.executable, "-m", "ruff", *command, *_OPTIONS]
        text = subprocess.run(ruff, input=text, capture_output=True, check=True, encoding="utf-8").stdout
    return text
