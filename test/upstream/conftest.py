"""A fresh tree for each test that wants one."""

from pathlib import Path

import pytest

from ._support import grow


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return grow(tmp_path / "vision")
