"""The loader: order of the images, several processes, and unreadable images."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from common.data import datasets, loading, presets
from common.data.loading import ImageLoader
from common.settings import DataSettings
from torch.utils.data import DataLoader
from torchvision.transforms import v2

# Python 3.12 and later warn if a process with threads is forked, as torch does for its workers.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def numbers(count: int, transform: Callable = torch.clone) -> datasets.Images:
    """Images whose pixels are their index; ``-1`` cannot be read."""

    def read(index: int) -> torch.Tensor:
        if index < 0:
            raise OSError("damaged")
        return torch.full((3, 2, 2), float(index))

    return datasets.Images(list(range(count)), list(range(count)), read, transform)


def indices(loader: ImageLoader, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [[] if labels is None else labels.tolist() for _, labels, _ in loader.batches(epoch, start)]


def test_bad_on_bad_image():
    with pytest.raises(ValueError, match="on_bad_image must be one of stop, skip; got 'ignore'"):
        ImageLoader(numbers(2), 2, on_bad_image="ignore")


def test_shuffled_order_depends_on_epoch_and_seed():
    orders = [
        [*chain(*indices(ImageLoader(numbers(50), 4, shuffle=True, seed=seed), epoch))]
        for seed, epoch in ((0, 1), (0, 2), (1, 1))
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in (*orders, range(50))}) == 4
    assert indices(ImageLoader(numbers(10), 4), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_epoch_can_start_at_any_batch():
    loader = ImageLoader(numbers(23), 4, shuffle=True)
    batches = indices(loader, 5)
    assert len(batches) == len(loader) == 6
    for start in range(7):
        assert indices(loader, 5, start) == batches[start:]


@pytest.mark.parametrize(("count", "processes"), [(24, 2), (23, 2), (17, 4), (25, 3), (5, 4), (1, 3)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_each_batch_of_one_process(count, processes, shuffle):
    """Each image is loaded once, and all processes have equally many batches."""
    one = indices(ImageLoader(numbers(count), 4 * processes, shuffle=shuffle), 2)
    parts = []
    for rank in range(processes):
        loader = ImageLoader(numbers(count), 4, shuffle=shuffle, rank=rank, processes=processes)
        parts.append(indices(loader, 2))
        assert len(parts[-1]) == len(loader) == len(one)
    assert [[*chain(*shares)] for shares in zip(*parts, strict=True)] == one
    for shares in zip(*parts, strict=True):
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@forks
def test_transforms_depend_only_on_seed_epoch_and_image():
    """They do not depend on the batch, workers, processes or states of the generators."""
    noise = v2.Lambda(lambda image: image + torch.rand(3, 1, 1))

    def draw(epoch: int = 1, start: int = 0, **options: int) -> dict[int, float]:
        torch.rand(3)
        rng_state = torch.get_rng_state()
        loader = ImageLoader(numbers(10, noise), **{"batch_size": 4, "shuffle": True, **options})
        values = {
            label: (image[0, 0, 0] - label).item()
            for images, labels, _ in loader.batches(epoch, start)
            for image, label in zip(images, labels.tolist(), strict=True)
        }
        assert torch.equal(torch.get_rng_state(), rng_state)
        return values

    expected = draw()
    assert len(set(expected.values())) == 10
    assert draw(batch_size=2) == draw(workers=2) == expected
    shared = draw(rank=0, processes=2, batch_size=2) | draw(rank=1, processes=2, batch_size=2)
    assert shared == expected
    late = draw(start=1)
    assert late.items() <= expected.items()
    assert 0 < len(late) < 10
    assert not set(draw(epoch=2).values()) & set(expected.values())
    assert not set(draw(seed=1).values()) & set(expected.values())


def test_batches_have_the_names_of_their_images(photos):
    train, _, _ = datasets.load_datasets("imagefolder", photos, 16)
    batch = next(ImageLoader(train, 3).batches())
    assert batch.names == list(train.sources[:3])
    assert next(ImageLoader(numbers(5), 3).batches(0, 1)).names == ["image 3", "image 4"]


def damage(photos: Path) -> list[str]:
    """Makes three images unreadable: an empty one, a text, and a truncated one."""
    empty, text, truncated = photos / "blue" / "blue0.png", photos / "blue" / "blue1.png", photos / "red" / "red0.png"
    empty.write_bytes(b"")
    text.write_text("not an image")
    truncated.write_bytes(truncated.read_bytes()[:200])
    return sorted(map(str, (empty, text, truncated)))


def read_all(photos: Path, on_bad_image: str, workers: int = 0) -> tuple[ImageLoader, list[str]]:
    """Reads all images twice, in batches of three; returns the loader and the paths of the images it loaded."""
    paths = sorted(map(str, photos.rglob("*.png")))
    images = datasets.Images(paths, list(range(len(paths))), datasets.read_image, presets.photo_eval(32))
    loader = ImageLoader(images, 3, workers=workers, on_bad_image=on_bad_image)
    for _ in range(2):
        labels = [label for _, batch_labels in loader for label in batch_labels.tolist()]
    return loader, [paths[label] for label in labels]


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_and_named_once(photos, capsys, workers):
    damaged = damage(photos)
    loader, loaded = read_all(photos, "skip", workers)
    assert sorted(loader.unreadable) == damaged
    assert sorted(loaded + damaged) == sorted(map(str, photos.rglob("*.png")))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for path in damaged:
        assert sum(path in line for line in lines) == 1


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_stops_by_default(photos, workers):
    first = damage(photos)[0]
    with pytest.raises(ValueError, match="cannot be read as an image") as info:
        read_all(photos, "stop", workers)
    assert first in str(info.value)
    assert "\n" not in str(info.value)


@forks
def test_workers_ignore_ctrl_c():
    """The terminal sends it to them too, while the main process saves a checkpoint."""
    earlier = set(multiprocessing.active_children())
    batches = ImageLoader(numbers(40), 2, workers=2).batches()
    labels = [next(batches).labels.tolist()]
    workers = set(multiprocessing.active_children()) - earlier
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    labels += [batch.labels.tolist() for batch in batches]
    assert labels == indices(ImageLoader(numbers(40), 2))


def test_workers_can_be_terminated():
    """torch does so when their parent exits; with SIGTERM blocked, the parent would wait for them forever."""
    earlier = set(multiprocessing.active_children())
    batches = ImageLoader(numbers(400), 2, workers=1).batches()
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - earlier
    worker.terminate()
    worker.join(5)
    assert not worker.is_alive()


def test_batch_without_readable_images_is_skipped(tmp_path):
    unreadable = datasets.Images(["a", "b"], [0, 1], partial(open, mode="rb"), presets.photo_eval(32))
    assert list(ImageLoader(unreadable, 2, on_bad_image="skip")) == []


def test_loading_and_testing_do_not_import_the_package(scripts, interpreter):
    program = f"""
import sys
sys.modules["torchvision_layers"] = None  # makes its import fail
sys.path.insert(0, {str(scripts)!r})
import torch
from common.data import datasets, loading
from common.training import evaluation
_, test, _ = datasets.load_datasets("digits", image_size=8)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
print(len(evaluation.predict(model, loading.ImageLoader(test, 64)).predictions))
"""
    result = interpreter.run(program)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(datasets.load_datasets("digits")[1])


@pytest.mark.parametrize(("device", "is_pinned"), [(None, False), ("cpu", False), ("cuda", True)])
def test_batches_for_a_gpu_are_pinned(
    monkeypatch: pytest.MonkeyPatch, photos: Path, device: str | None, is_pinned: bool
) -> None:
    calls = []

    class Recorded(DataLoader):
        def __init__(self, *args: object, pin_memory: bool, **kwargs: object) -> None:
            calls.append(pin_memory)  # without a GPU, pinning would only warn
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(loading, "DataLoader", Recorded)
    settings = DataSettings("imagefolder", str(photos), image_size=16)
    for loader in loading.load_data(settings, device and torch.device(device))[:2]:
        next(loader.batches())
    assert calls == [is_pinned] * 2
