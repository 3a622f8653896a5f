"""Pictures to train on."""

from pathlib import Path

import torch
from PIL import Image


def draw_pictures(folder: Path, count: int) -> None:
    """Fills a folder with so many noisy pictures; what is in one depends on the folder's name and its number."""
    folder.mkdir(parents=True)
    for number in range(count):
        generator = torch.Generator().manual_seed(1000 * sum(folder.name.encode()) + number)
        pixels = torch.randint(0, 60, (40, 48, 3), generator=generator)
        pixels[..., len(folder.name) % 3] += 150  # "red" and "blue" differ in the channel that is bright
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{folder.name}{number}.png")
