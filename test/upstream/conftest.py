"""A fresh tree for each test that wants one."""

from pathlib import Path

import pytest
from torchvision_tree import grow


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return grow(tmp_path / "vision")
