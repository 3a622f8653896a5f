"""The scripts import each other by bare names, as they do when run; pictures to train on are drawn here."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[2] / "references" / "classification"
sys.path.insert(0, str(SCRIPTS))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def scripts() -> Path:
    return SCRIPTS


@pytest.fixture
def draw() -> Callable[[Path, int], None]:
    """Fills a folder with so many noisy pictures; what is in one depends on the folder's name and its number."""

    def draw_pictures(folder: Path, count: int) -> None:
        folder.mkdir(parents=True)
        for number in range(count):
            generator = torch.Generator().manual_seed(1000 * sum(folder.name.encode()) + number)
            pixels = torch.randint(0, 60, (40, 48, 3), generator=generator)
            pixels[..., len(folder.name) % 3] += 150  # "red" and "blue" differ in the channel that is bright
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{folder.name}{number}.png")

    return draw_pictures


@pytest.fixture
def photos(tmp_path: Path, draw: Callable[[Path, int], None]) -> Path:
    """A folder of two classes with 10 pictures each, of which 16 are for training and 4 for testing."""
    for name in ("blue", "red"):
        draw(tmp_path / "photos" / name, 10)
    return tmp_path / "photos"
