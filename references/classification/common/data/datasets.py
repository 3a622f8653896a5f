"""The datasets by name."""

from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, FakeData, ImageFolder
from torchvision.transforms import v2

from . import presets

DATASETS: tuple[str, ...] = tuple(presets.NORMALIZATIONS)
FAKE_CLASSES = 10
TEST_SHARE = 0.2
Sample = tuple[str, int]  # path and label
SPLIT_SEED = 0  # independent of --seed, which must not change the test set


class Unreadable(NamedTuple):
    """Replaces an image that cannot be read."""

    path: str
    reason: str


class Images(Dataset):
    """Labelled images, transformed at each access.

    An item is ``(image, label)`` or :class:`Unreadable`, which ``ImageLoader`` handles.

    Args:
        sources: one argument of ``read`` per image.
        labels: class index of each image.
        read: reads an image from its source.
        transform: turns an image into a float tensor, 3 × size × size.
    """

    def __init__(self, sources: Sequence, labels: list[int], read: Callable, transform: v2.Transform) -> None:
        self.sources, self.labels = sources, labels
        self.read, self.transform = read, transform

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Name of an image for messages."""
        source = self.sources[index]
        return source if isinstance(source, str) else f"image {index}"

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Unreadable:
        source = self.sources[index]
        try:
            image = self.read(source)
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
            return Unreadable(str(source), f"{type(error).__name__}: {error}")
        return self.transform(image), self.labels[index]


Datasets = tuple[Images, Images, list[str]]  # for training, for testing, and the names of the classes


def load_datasets(
    name: str,
    data_path: str | Path | None = None,
    image_size: int = 64,
    *,
    auto_augment: str | None = None,
    random_erase: float = 0.0,
    normalization: str = "dataset",
) -> Datasets:
    """The training set, the test set and the names of the classes. The split is always the same.

    Args:
        name: one of ``DATASETS``. ``"digits"``: the 1,797 handwritten digits of scikit-learn, four fifths for
            training. ``"imagefolder"``: any images. ``"cifar10"``, ``"imagenet"``: as distributed, with ImageNet's
            validation set as test set. ``"fake"``: noise in 10 classes, 1,000 images for training and 200 for
            testing, to measure speed.
        data_path: for ``"imagefolder"``, a folder with ``train/CLASS/...`` and ``val/CLASS/...``, or with
            ``CLASS/...``, then split with four fifths of each class for training; for ``"imagenet"``, a folder with
            ``train/WNID/...`` and ``val/WNID/...``; for ``"cifar10"``, the folder torchvision downloaded it to.
            Not accepted for the others.
        image_size: side of the square the images are scaled to.
        auto_augment: augmentation of training images, one of ``presets.AUTO_AUGMENT``. Default: ``None``.
        random_erase: probability of erasing a random rectangle of a training image. Default: ``0.0``.
        normalization: one of ``presets.SCHEMES``. Default: ``"dataset"``.

    Errors: ``ValueError`` for an unknown name, a folder without such content, or a number out of range.
    """
    if image_size < 8:
        raise ValueError(f"image_size must be at least 8, got {image_size}")
    transforms = presets.transforms_of(
        name, image_size, auto_augment=auto_augment, random_erase=random_erase, scheme=normalization
    )
    if name in ("digits", "fake"):
        if data_path is not None:
            raise ValueError(
                f"data_path is only for the datasets imagefolder, cifar10 and imagenet, not for {name}; "
                f"got {str(data_path)!r}"
            )
        return _load_digits(*transforms) if name == "digits" else _make_fakes(image_size, *transforms)
    if data_path is None:
        raise ValueError(f"data_path is required for the {name} dataset")
    if name == "cifar10":
        return _load_cifar10(Path(data_path), *transforms)
    return _load_folder(Path(data_path), name, *transforms)


def _load_digits(train_transform: v2.Transform, test_transform: v2.Transform) -> Datasets:
    digits = sklearn_digits()
    scans = torch.from_numpy(digits.images / 16).float().unsqueeze(1).expand(-1, 3, -1, -1)
    labels = digits.target.tolist()

    def subset(indices: list[int], transform: v2.Transform) -> Images:
        return Images(scans[indices], [labels[i] for i in indices], Tensor.clone, transform)

    train, test = stratified_split(labels)
    classes = [str(digit) for digit in digits.target_names]
    return subset(train, train_transform), subset(test, test_transform), classes


def _make_fakes(image_size: int, train_transform: v2.Transform, test_transform: v2.Transform) -> Datasets:
    def noise(count: int, first: int, transform: v2.Transform) -> Images:
        images = FakeData(count, (3, image_size, image_size), FAKE_CLASSES, random_offset=first)
        return Images(images, [label for _, label in images], itemgetter(0), transform)

    classes = [f"fake {number}" for number in range(FAKE_CLASSES)]
    return noise(1000, 0, train_transform), noise(200, 1000, test_transform), classes


def _load_cifar10(folder: Path, train_transform: v2.Transform, test_transform: v2.Transform) -> Datasets:
    try:
        train, test = (CIFAR10(folder, train=is_train) for is_train in (True, False))
    except RuntimeError as error:  # a file is missing or damaged
        raise ValueError(
            f"data_path {folder} does not hold a complete CIFAR-10; download it with "
            f"torchvision.datasets.CIFAR10({str(folder)!r}, download=True)"
        ) from error
    return (
        Images(train.data, train.targets, Image.fromarray, train_transform),
        Images(test.data, test.targets, Image.fromarray, test_transform),
        train.classes,
    )


def _load_folder(folder: Path, name: str, train_transform: v2.Transform, test_transform: v2.Transform) -> Datasets:
    if not folder.is_dir():
        raise ValueError(f"data_path {folder} {'is not a folder' if folder.exists() else 'does not exist'}")

    if (folder / "train").is_dir() and (folder / "val").is_dir():
        classes, train = _list_images(folder / "train")
        val_classes, test = _list_images(folder / "val")
        if classes != val_classes:
            odd = ", ".join(sorted(set(classes) ^ set(val_classes)))
            raise ValueError(f"data_path {folder}: train and val must have the same classes; only one has {odd}")
    elif name == "imagenet":
        raise ValueError(f"data_path {folder} must hold the folders train and val for the imagenet dataset")
    else:
        classes, samples = _list_images(folder)
        if set(classes) <= {"train", "test", "val", "valid", "validation"}:
            raise ValueError(f"data_path {folder} must hold train and val, or one folder per class; got {classes}")
        train, test = _split_samples(folder, classes, samples)
    if name == "imagenet" and len(classes) != 1000:
        raise ValueError(
            f"data_path {folder} must hold 1000 classes for the imagenet dataset, got {len(classes)}; "
            "for other numbers of classes: --dataset imagefolder"
        )
    if len(classes) < 2:
        raise ValueError(f"data_path {folder} must hold at least 2 classes, got only {classes[0]!r}")

    def subset(samples: list[Sample], transform: v2.Transform) -> Images:
        paths, labels = zip(*samples, strict=True)
        return Images(paths, list(labels), read_image, transform)

    return subset(train, train_transform), subset(test, test_transform), classes


def _split_samples(folder: Path, classes: list[str], samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    labels = [label for _, label in samples]
    counts = Counter(labels)
    for label, name in enumerate(classes):
        if counts[label] < 2:
            raise ValueError(f"data_path {folder}: class {name!r} must have at least 2 images to be split, got 1")
    train, test = stratified_split(labels)
    return [samples[i] for i in train], [samples[i] for i in test]


def read_image(path: str) -> Image.Image:
    """Reads an RGB image; scales 16-bit gray images, which pillow would clip to 8 bits."""
    with Image.open(path) as image:
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            return image.convert("RGBA").convert("RGB")  # the same colours; pillow warns about the direct conversion
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).round().astype(np.uint8))
        return image.convert("RGB")


def _list_images(folder: Path) -> tuple[list[str], list[Sample]]:
    try:
        listing = ImageFolder(folder)
    except FileNotFoundError as error:  # no class folder, or one without images
        raise ValueError(f"data_path {folder}: {error}") from error
    return listing.classes, listing.samples


def stratified_split(labels: list[int]) -> tuple[list[int], list[int]]:
    """Indices for training and for testing: the same share of each class, and at least one image of each in both."""
    train, test = [], []
    members_of: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members_of.setdefault(label, []).append(i)
    for _, members in sorted(members_of.items()):
        train_members, test_members = train_test_split(members, test_size=TEST_SHARE, random_state=SPLIT_SEED)
        train += train_members
        test += test_members
    return sorted(train), sorted(test)
