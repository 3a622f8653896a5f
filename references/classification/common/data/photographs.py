"""Photographs that packages on PyPI ship, and crops of them."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["CALIBRATION", "EVALUATION", "crops", "load_photograph", "pixels"]

#: Packages, by the name to import, with the name to install and the folder of the photographs.
PACKAGES = {
    "matplotlib": ("matplotlib", "mpl-data/sample_data"),
    "skimage": ("scikit-image", "data"),
    "sklearn": ("scikit-learn", "datasets/images"),
}
_SKIMAGE = ("astronaut.png", "coffee.png", "coins.png", "grass.png", "motorcycle_left.png", "rocket.jpg")
#: Photographs to calibrate on, and others to measure on.
CALIBRATION = (*(f"skimage/{name}" for name in _SKIMAGE), "sklearn/china.jpg")
EVALUATION = (
    *(f"skimage/{name}" for name in ("brick.png", "camera.png", "chelsea.png", "hubble_deep_field.jpg")),
    *("sklearn/flower.jpg", "matplotlib/grace_hopper.jpg"),
)


def load_photograph(name: str) -> Image.Image:
    """The photograph ``"package/file"`` in RGB.

    Errors: ``ValueError`` if the package is not installed or does not ship the file.
    """
    package, _, file = name.partition("/")
    distribution, folder = PACKAGES[package]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{file} is in a package that is not installed: pip install {distribution}")
    path = Path(spec.origin).parent / folder / file
    if not path.is_file():
        raise ValueError(f"{distribution} must ship {file}, this version does not: pip install -U {distribution}")
    with Image.open(path) as image:
        return image.convert("RGB")


def pixels(image: Image.Image) -> Tensor:
    """The image as the weights of ``--weights pypi`` expect it, (pixel - 127) / 128, in the shape (3, H, W)."""
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 127) / 128


def crops(names: Sequence[str], count: int, size: int, seed: int) -> Tensor:
    """``count`` random crops of the photographs in turn, of 15 to 100 % of their area, in the shape (count, 3, H, W).

    Args:
        names: photographs, as in :func:`load_photograph`.
        count: number of crops.
        size: side of the crops, after resizing.
        seed: of the random numbers.
    """
    generator = np.random.default_rng(seed)
    images = [load_photograph(name) for name in names]
    boxes = [random_box(images[i % len(images)].size, generator) for i in range(count)]
    resized = [
        images[i % len(images)].resize((size, size), Image.Resampling.BICUBIC, box) for i, box in enumerate(boxes)
    ]
    return torch.stack([pixels(image) for image in resized])


def random_box(size: tuple[int, int], generator: Any) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part of an image, with sides in a ratio between 3:4 and 4:3."""
    width, height = size
    while True:
        area = width * height * generator.uniform(0.15, 1)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            return left, top, left + w, top + h
