"""Photographs in a folder as inputs of a model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as transforms

from .._utils.progress import track

__all__ = ["PRESETS", "Preprocessing", "load_photographs"]

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"))
_MODES = {1: "L", 3: "RGB"}
#: All that Pillow raises.
_ERRORS = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Preprocessing:
    """The steps from a photograph to an input: resize, crop the middle, scale to [0, 1], normalize.

    Args:
        size: height and width of the input.
        mean: value to subtract from each channel.
        std: value to divide each channel by.
        crop: the share of the shorter side that the crop keeps. Default: 0.875, 224 of 256 pixels.
    """

    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    crop: float = 0.875

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"cropped to {self.size[0]}×{self.size[1]} pixels, mean {mean}, std {std}"

    def input(self, image: Image.Image) -> Tensor:
        """One input, C×H×W."""
        width, height = image.size
        scale = max(self.size[0] / height, self.size[1] / width) / self.crop
        resized = [
            max(math.floor(side * scale + 0.5), least) for side, least in zip((height, width), self.size, strict=True)
        ]
        pixels = transforms.center_crop(transforms.resize(image, resized), list(self.size))
        normalized: Tensor = transforms.normalize(transforms.to_tensor(pixels), list(self.mean), list(self.std))
        return normalized


#: How the weights of torchvision, and those of Inception and many models of timm, were trained.
PRESETS = {
    "imagenet": Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": Preprocessing((299, 299), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def load_photographs(folder: Path, preprocessing: Preprocessing, channels: int, limit: int) -> Tensor:
    """Up to ``limit`` photographs of a folder and the folders in it, evenly spread over their sorted paths.

    Errors: ``ValueError`` if there is none, if one cannot be read, or if the numbers of channels differ; ``OSError`` if
    the folder cannot be read.
    """
    if channels not in _MODES:
        raise ValueError(f"photographs have 1 or 3 channels, got --channels {channels}: pass a tensor as --calibration")
    if not len(preprocessing.mean) == len(preprocessing.std) == channels:
        raise ValueError(
            f"--mean and --std must have one number for each of {channels} channels, got "
            f"{len(preprocessing.mean)} and {len(preprocessing.std)}"
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"--calibration must be a folder with images ({', '.join(sorted(_SUFFIXES))}), got {folder}")
    count = min(limit, len(paths))
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    inputs = []
    for path in track(chosen, "reading images", "image"):
        try:
            with Image.open(path) as image:
                inputs.append(preprocessing.input(_eight_bits(image).convert(_MODES[channels])))
        except _ERRORS as error:
            raise ValueError(f"{path} is not an image, or is damaged: {error}") from error
    return torch.stack(inputs)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits with the 8 highest, because Pillow replaces all values above 255 by 255."""
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value * (1 / 256))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of mode {image.mode!r}, whose range is unknown: save it in 8 bits")
    return image
