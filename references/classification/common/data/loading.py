"""Batches of a dataset, in an order that seed and epoch determine, without the images that cannot be read.

The random transforms of an image depend only on the seed, the epoch and the image. The number of workers or processes
does not change a batch, nor does a run that is interrupted and resumed.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from .. import distributed
from ..runs.signals import sigint_blocked
from ..settings import DataSettings
from .datasets import Images, Unreadable, load_datasets

ON_BAD_IMAGE = ("stop", "skip")


class Batch(NamedTuple):
    """The part of a batch for one process; ``images`` and ``labels`` are ``None`` if none of it can be read."""

    images: Tensor | None
    labels: Tensor | None
    names: list[str]


class ImageLoader:
    """Batches of ``(images, labels)`` without the images that cannot be read.

    Args:
        dataset: the images to load.
        batch_size: images in a batch of this process; the last batch, and one with unreadable images, has fewer.
        shuffle: whether order and transforms change with each epoch. Default: ``False``, the order of ``dataset``.
        workers: processes that read images; ``0`` reads in this process.
        on_bad_image: ``"stop"`` raises ``ValueError`` at the first unreadable image; ``"skip"`` prints its name to
            stderr and continues.
        seed: seed of orders and transforms.
        rank: rank of this process; each process loads its part of every batch.
        processes: number of processes that share the dataset.
        pin_memory: whether to load into page-locked memory, from which copies to a GPU are faster.

    Attributes:
        unreadable: paths of the images skipped so far.
    """

    def __init__(
        self,
        dataset: Images,
        batch_size: int,
        *,
        shuffle: bool = False,
        workers: int = 0,
        on_bad_image: str = "stop",
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"on_bad_image must be one of {', '.join(ON_BAD_IMAGE)}; got {on_bad_image!r}")
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.workers, self.on_bad_image, self.seed = workers, on_bad_image, seed
        self.rank, self.processes, self.pin_memory = rank, processes, pin_memory
        self.unreadable: set[str] = set()

    def __len__(self) -> int:
        return -(-len(self.dataset) // (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, _ in self.batches():
            if images is not None:
                yield images, labels

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from index ``start`` on, the same number in every process, some possibly empty."""
        loader = DataLoader(
            _IndexedImages(self.dataset, (self.seed, epoch) if self.shuffle else None),
            batch_sampler=self._indices(epoch)[start:],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # leaves torch's own generator, which checkpoints hold, unchanged
        )
        with sigint_blocked():  # workers continue while this process saves a checkpoint
            batches = iter(loader)
        for (images, labels, indices), unreadable in batches:
            for path, reason in unreadable:
                if self.on_bad_image == "stop":
                    raise ValueError(f"{path} cannot be read as an image ({reason}); skip it: --on-bad-image skip")
                if path not in self.unreadable:
                    self.unreadable.add(path)
                    tqdm.write(f"skipped {path}: cannot be read as an image ({reason})", file=sys.stderr)
            yield Batch(images, labels, [self.dataset.name(index) for index in indices])

    def _indices(self, epoch: int) -> list[list[int]]:
        """Indices of this process in each batch: equal shares, which differ by at most one in the last batch."""
        indices = np.arange(len(self.dataset))
        if self.shuffle:
            indices = np.random.default_rng([self.seed, epoch]).permutation(indices)
        total = self.batch_size * self.processes
        batches = (indices[first : first + total] for first in range(0, len(indices), total))
        return [np.array_split(batch, self.processes)[self.rank].tolist() for batch in batches]


class _IndexedImages(Dataset):
    """``dataset`` with the index of each item; with a ``seed``, torch is seeded for each item."""

    def __init__(self, dataset: Images, seed: tuple[int, int] | None) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | Unreadable:
        with torch.random.fork_rng(devices=[], enabled=self.seed is not None):
            if self.seed is not None:
                seed = np.random.SeedSequence([*self.seed, index]).generate_state(1)[0]
                torch.random.default_generator.manual_seed(int(seed))
            item = self.dataset[index]
        return item if isinstance(item, Unreadable) else (*item, index)


_Readable = tuple[Tensor | None, Tensor | None, list[int]]


def _collate(samples: Sequence[tuple[Tensor, int, int] | Unreadable]) -> tuple[_Readable, list[Unreadable]]:
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    if not readable:
        return (None, None, []), unreadable
    images, labels, indices = default_collate(readable)
    return (images, labels, indices.tolist()), unreadable


def load_data(settings: DataSettings, device: torch.device | None = None) -> tuple[ImageLoader, ImageLoader, list[str]]:
    """Loaders of the training and the test set for a model on ``device``, and the names of the classes."""
    train_set, test_set, classes = load_datasets(
        settings.dataset,
        settings.data_path,
        settings.image_size,
        auto_augment=settings.auto_augment,
        random_erase=settings.random_erase,
        normalization=settings.normalization,
    )
    loader = partial(
        ImageLoader,
        batch_size=settings.batch_size,
        workers=settings.workers,
        on_bad_image=settings.on_bad_image,
        rank=distributed.rank(),
        processes=distributed.world_size(),
        pin_memory=device is not None and device.type == "cuda",
    )
    return loader(train_set, shuffle=True, seed=settings.seed), loader(test_set), classes


def skipped_images(*loaders: ImageLoader) -> str:
    """The end of a line that says how many images were skipped in all processes; empty if none were.

    All processes must call it.
    """
    for loader in loaders:
        loader.unreadable.update(*distributed.gather_objects(loader.unreadable))
    count = sum(len(loader.unreadable) for loader in loaders)
    return f", unreadable images skipped: {count}" if count else ""
