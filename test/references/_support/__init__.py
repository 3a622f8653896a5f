"""Helpers of these tests: the path of the scripts, training images, and runs of train.py in forked processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[3] / "references" / "classification"
sys.path.insert(0, str(SCRIPTS))  # as when a script runs


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def draw_images(folder: Path, count: int) -> None:
    """Fills a folder with ``count`` noisy images, which depend on the name of the folder and on their number."""
    folder.mkdir(parents=True)
    for number in range(count):
        generator = torch.Generator().manual_seed(1000 * sum(folder.name.encode()) + number)
        pixels = torch.randint(0, 60, (40, 48, 3), generator=generator)
        pixels[..., len(folder.name) % 3] += 150  # "red" and "blue" have different bright channels
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{folder.name}{number}.png")


def epochs(*numbers: int, shift: float = 0.0) -> list[dict[str, float]]:
    """The history of a run, with other values for each epoch and ``shift``."""
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr")
    return [
        {"epoch": number, **{name: shift + 1 / (number + place) for place, name in enumerate(names)}}
        for number in numbers
    ]


class Host:
    """A process that forks runs of train.py, see ``host.py``."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parents[1]), "OMP_NUM_THREADS": "1"}
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # any other check in this process would spoil its forks
        command = [sys.executable, str(Path(__file__).with_name("host.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, *runs: dict) -> list[tuple[int, float]]:
        """Starts all runs together; returns the exit status and the processor seconds of each."""
        self.process.stdin.write(f"{json.dumps(runs)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())
