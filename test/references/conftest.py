"""The scripts import each other by bare names, as they do when run; pictures to train on are drawn here."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pictures import draw_pictures

SCRIPTS = Path(__file__).resolve().parents[2] / "references" / "classification"
sys.path.insert(0, str(SCRIPTS))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scripts() -> Path:
    return SCRIPTS


class Host:
    """Runs of train.py in processes of their own, which ``host.py`` forks."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("host.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, *runs: dict) -> list[tuple[int, float]]:
        """The exit status, and the seconds of computing, of each of the runs, which start together."""
        self.process.stdin.write(f"{json.dumps(runs)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.process.stdin.close()
    host.process.stdout.close()
    host.process.wait()


@pytest.fixture
def draw() -> Callable[[Path, int], None]:
    return draw_pictures


@pytest.fixture
def photos(tmp_path: Path, draw: Callable[[Path, int], None]) -> Path:
    """A folder of two classes with 10 pictures each, of which 16 are for training and 4 for testing."""
    for name in ("blue", "red"):
        draw(tmp_path / "photos" / name, 10)
    return tmp_path / "photos"
