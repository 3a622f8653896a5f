"""Fixtures: the scripts, a host that forks runs, and images to train on."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ._support import SCRIPTS, Host, draw_images


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scripts() -> Path:
    return SCRIPTS


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    if not hasattr(os, "fork"):
        pytest.skip("needs POSIX to fork and kill runs")
    host = Host()
    yield host
    host.process.stdin.close()
    host.process.stdout.close()
    host.process.wait()


@pytest.fixture
def draw() -> Callable[[Path, int], None]:
    return draw_images


@pytest.fixture
def photos(tmp_path: Path, draw: Callable[[Path, int], None]) -> Path:
    """A folder of two classes with 10 images each, split into 16 for training and 4 for testing."""
    for name in ("blue", "red"):
        draw(tmp_path / "photos" / name, 10)
    return tmp_path / "photos"
