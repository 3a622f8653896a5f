"""Each tutorial runs from an empty folder, with warnings as errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gallery
import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "source" / "tutorials").glob("*.py"))


def run(tutorial: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT), "REPOSITORY": str(ROOT)}
    command = [sys.executable, "-W", "error", str(tutorial)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda tutorial: tutorial.stem)
def test_tutorial_runs(tutorial: Path, tmp_path: Path) -> None:
    result = run(tutorial, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") > 3


def test_a_failing_tutorial_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import warnings\nwarnings.warn('deprecated')\n")
    assert "UserWarning: deprecated" in run(tmp_path / "broken.py", tmp_path).stderr


def test_all_tutorials_are_executed() -> None:
    """sphinx-gallery runs files whose names match its pattern, and ends the build at the first error."""
    settings = gallery.settings()
    assert len(TUTORIALS) == 5
    assert all(re.search(settings["filename_pattern"], str(path)) for path in TUTORIALS)
    assert settings["abort_on_example_error"]
