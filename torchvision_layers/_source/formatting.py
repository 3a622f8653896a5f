"""Formatting with ruff."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["LINE_LENGTH", "format_code"]

LINE_LENGTH = 120
_OPTIONS = ["--quiet", "--isolated", f"--line-length={LINE_LENGTH}", "--target-version=py310", "-"]


def format_code(text: str, *, sort_imports: bool = False) -> str:
    """Formats source with ruff; returns it unchanged if ruff is not installed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    ruff = shutil.which("ruff", path=path)
    if ruff is None:
        return text
    commands = [["check", "--select=I", "--fix", "--exit-zero"]] if sort_imports else []
    for command in [*commands, ["format"]]:
        result = subprocess.run(
            [ruff, *command, *_OPTIONS], input=text, capture_output=True, check=True, encoding="utf-8"
        )
        text = result.stdout
    return text
