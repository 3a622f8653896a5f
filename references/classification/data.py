"""The datasets by name.

Nothing here needs ``torchvision_layers``: a trained artefact can be tested in a process that does not have it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import presets
import torch
from PIL import Image
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

TEST_SHARE = 0.2
SPLIT_SEED = 0  # of the split alone: --seed must not change what is tested on
ON_BAD_IMAGE = ("stop", "skip")


class Unreadable(NamedTuple):
    """Takes the place of an image that cannot be read."""

    path: str
    reason: str


class Images(Dataset):
    """Images with labels, transformed at each access.

    An item is ``(image, label)``, or :class:`Unreadable`; ``ImageLoader`` tells the two apart.

    Args:
        sources: what ``read`` makes an image of, one for each image.
        labels: an index into the classes for each image.
        read: called with a source.
        transform: called with what ``read`` returned; returns a float tensor, 3 × size × size.
    """

    def __init__(self, sources: Sequence, labels: list[int], read: Callable, transform: v2.Transform) -> None:
        self.sources, self.labels = sources, labels
        self.read, self.transform = read, transform

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """What to call the image with this index in a message."""
        source = self.sources[index]
        return source if isinstance(source, str) else f"image {index}"

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Unreadable:
        source = self.sources[index]
        try:
            image = self.read(source)
        except Exception as error:  # by format and damage a decoder raises OSError, SyntaxError, struct.error, ...
            return Unreadable(str(source), f"{type(error).__name__}: {error}")
        return self.transform(image), self.labels[index]


def load_datasets(
    name: str, data_path: str | Path | None = None, image_size: int = 64
) -> tuple[Images, Images, list[str]]:
    """The training set, the test set and the names of the classes. The split is always the same.

    Args:
        name: ``"digits"`` (1,797 handwritten digits inside scikit-learn, four fifths for training) or
            ``"imagefolder"``.
        data_path: for ``"imagefolder"`` alone: a folder with ``train/CLASS/...`` and ``val/CLASS/...``, or one with
            ``CLASS/...``, of which four fifths of each class are for training.
        image_size: side of the square the images are scaled to.

    Raises:
        ValueError: for an unknown name, or a folder with no such content.
    """
    if image_size < 8:
        raise ValueError(f"image_size must be at least 8, got {image_size}")
    if name == "digits":
        if data_path is not None:
            raise ValueError(f"data_path is for the imagefolder dataset, digits has none; got {str(data_path)!r}")
        return _load_digits(image_size)
    if name == "imagefolder":
        if data_path is None:
            raise ValueError("data_path must be given for the imagefolder dataset")
        return _load_folder(Path(data_path), image_size)
    raise ValueError(f"dataset must be one of digits, imagefolder; got {name!r}")


def _load_digits(image_size: int) -> tuple[Images, Images, list[str]]:
    digits = sklearn_digits()
    scans = torch.from_numpy(digits.images / 16).float().unsqueeze(1).expand(-1, 3, -1, -1)
    labels = digits.target.tolist()

    def subset(indices: list[int], transform: v2.Transform) -> Images:
        return Images(scans[indices], [labels[i] for i in indices], Tensor.clone, transform)

    train, test = stratified_split(labels)
    classes = [str(digit) for digit in digits.target_names]
    return subset(train, presets.digits_train(image_size)), subset(test, presets.digits_eval(image_size)), classes


def _load_folder(folder: Path, image_size: int) -> tuple[Images, Images, list[str]]:
    if not folder.is_dir():
        raise ValueError(f"data_path {folder} {'is not a folder' if folder.exists() else 'does not exist'}")

    if (folder / "train").is_dir() and (folder / "val").is_dir():
        classes, train = _list_images(folder / "train")
        val_classes, test = _list_images(folder / "val")
        if classes != val_classes:
            odd = ", ".join(sorted(set(classes) ^ set(val_classes)))
            raise ValueError(f"data_path {folder}: train and val must have the same classes, but not in both: {odd}")
    else:
        classes, samples = _list_images(folder)
        if set(classes) <= {"train", "test", "val", "valid", "validation"}:
            raise ValueError(f"data_path {folder} must hold train and val, or one folder a class; got {classes}")
        labels = [label for _, label in samples]
        counts = Counter(labels)
        for label, name in enumerate(classes):
            if counts[label] < 2:
                raise ValueError(f"data_path {folder}: class {name!r} has a single image, which cannot be split")
        train_indices, test_indices = stratified_split(labels)
        train, test = [samples[i] for i in train_indices], [samples[i] for i in test_indices]
    if len(classes) < 2:
        raise ValueError(f"data_path {folder} must hold at least 2 classes, got only {classes[0]!r}")

    def subset(samples: list[tuple[str, int]], transform: v2.Transform) -> Images:
        paths, labels = zip(*samples, strict=True)
        return Images(paths, list(labels), read_image, transform)

    return subset(train, presets.photo_train(image_size)), subset(test, presets.photo_eval(image_size)), classes


def read_image(path: str) -> Image.Image:
    """An RGB image; gray ones of 16 bits, which pillow would cut off at 8, are scaled."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).round().astype(np.uint8))
        return image.convert("RGB")


def _list_images(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    try:
        listing = ImageFolder(folder)
    except FileNotFoundError as error:  # no class folder, or one without images
        raise ValueError(f"data_path {folder}: {error}") from error
    return listing.classes, listing.samples


def stratified_split(labels: list[int]) -> tuple[list[int], list[int]]:
    """Indices for training and for testing: the same share of each class, at least one of each in both."""
    train, test = [], []
    members_of: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members_of.setdefault(label, []).append(i)
    for _, members in sorted(members_of.items()):
        kept, held_out = train_test_split(members, test_size=TEST_SHARE, random_state=SPLIT_SEED)
        train += kept
        test += held_out
    return sorted(train), sorted(test)
