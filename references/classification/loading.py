"""Batches of a dataset: in an order that seed and epoch decide, without the images that cannot be read.

What is drawn for an image depends on the seed, the epoch and the image alone: neither the number of workers or of
processes, nor a run that was cut and resumed, changes a batch.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import distributed
import numpy as np
import torch
from data import Images, Unreadable, load_datasets
from interruption import without_ctrl_c
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

ON_BAD_IMAGE = ("stop", "skip")


class Batch(NamedTuple):
    """One process's part of a batch; ``images`` and ``labels`` are ``None`` where none of it can be read."""

    images: Tensor | None
    labels: Tensor | None
    names: list[str]


class ImageLoader:
    """Batches of ``(images, labels)`` without the images that cannot be read.

    Args:
        dataset: what to read from.
        batch_size: images in a batch of this process; fewer in the last one, and where images could not be read.
        shuffle: an order, and transforms, that are others in each epoch. Default: ``False``, the order of ``dataset``.
        workers: processes that read; ``0`` reads in this one.
        on_bad_image: ``"stop"`` raises ``ValueError`` at the first unreadable image; ``"skip"`` names it on stderr
            and goes on.
        seed: of the orders and the transforms.
        rank: which of ``processes`` this is: each gets its part of every batch.
        processes: how many share the dataset.

    Attributes:
        unreadable: paths of the images left out so far.
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
    ) -> None:
        if on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"on_bad_image must be one of {', '.join(ON_BAD_IMAGE)}; got {on_bad_image!r}")
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.workers, self.on_bad_image, self.seed = workers, on_bad_image, seed
        self.rank, self.processes = rank, processes
        self.unreadable: set[str] = set()

    def __len__(self) -> int:
        return -(-len(self.dataset) // (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, _ in self.batches():
            if images is not None:
                yield images, labels

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on: as many in each process, even if some are empty."""
        loader = DataLoader(
            _Numbered(self.dataset, (self.seed, epoch) if self.shuffle else None),
            batch_sampler=self._parts(epoch)[start:],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # nothing is drawn from torch's own, whose state a checkpoint holds
        )
        with without_ctrl_c():  # readers go on while this process saves
            batches = iter(loader)
        for (images, labels, indices), unreadable in batches:
            for path, reason in unreadable:
                if self.on_bad_image == "stop":
                    raise ValueError(f"{path} cannot be read as an image ({reason}); on_bad_image=skip leaves it out")
                if path not in self.unreadable:
                    self.unreadable.add(path)
                    tqdm.write(f"skipped {path}: cannot be read as an image ({reason})", file=sys.stderr)
            yield Batch(images, labels, [self.dataset.name(index) for index in indices])

    def _parts(self, epoch: int) -> list[list[int]]:
        """The indices of this process in each batch: an equal share, in the last batch equal but for one."""
        indices = np.arange(len(self.dataset))
        if self.shuffle:
            indices = np.random.default_rng([self.seed, epoch]).permutation(indices)
        whole = self.batch_size * self.processes
        batches = (indices[first : first + whole] for first in range(0, len(indices), whole))
        return [np.array_split(batch, self.processes)[self.rank].tolist() for batch in batches]


class _Numbered(Dataset):
    """``dataset`` with the index beside each item; with a ``seed``, what torch draws for an item is decided by it."""

    def __init__(self, dataset: Images, seed: tuple[int, int] | None) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | Unreadable:
        with torch.random.fork_rng(devices=[], enabled=self.seed is not None):
            if self.seed is not None:
                number = np.random.SeedSequence([*self.seed, index]).generate_state(1)[0]
                torch.random.default_generator.manual_seed(int(number))
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


def load_data(args: Namespace) -> tuple[ImageLoader, ImageLoader, list[str]]:
    """Loaders of the training and of the test set, and the names of the classes."""
    augmentation = {name: getattr(args, name) for name in ("auto_augment", "random_erase") if hasattr(args, name)}
    train_set, test_set, classes = load_datasets(args.dataset, args.data_path, args.image_size, **augmentation)
    loader = partial(
        ImageLoader,
        batch_size=args.batch_size,
        workers=args.workers,
        on_bad_image=args.on_bad_image,
        rank=distributed.rank(),
        processes=distributed.count(),
    )
    return loader(train_set, shuffle=True, seed=getattr(args, "seed", 0)), loader(test_set), classes


def left_out(*loaders: ImageLoader) -> str:
    """How many images no process could read, to end a line with; nothing where there was none.

    All processes must call it.
    """
    for loader in loaders:
        loader.unreadable.update(*distributed.gather(loader.unreadable))
    count = sum(len(loader.unreadable) for loader in loaders)
    return f", unreadable images skipped: {count}" if count else ""
