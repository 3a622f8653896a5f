"""A fresh checkout of torchvision for each test."""

from pathlib import Path

import pytest

from ._support import make_checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "vision")
