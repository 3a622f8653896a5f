"""The loader: which images come when, in how many processes, and what an unreadable one does."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import data
import presets
import pytest
import torch
from loading import ImageLoader
from torchvision.transforms import v2

# Python 3.12 and later warn where a process with threads is forked, which is how torch starts its loader workers.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def numbers(count: int, transform: Callable = torch.clone) -> data.Images:
    """Images that hold their own index; ``-1`` cannot be read."""

    def read(index: int) -> torch.Tensor:
        if index < 0:
            raise OSError("damaged")
        return torch.full((3, 2, 2), float(index))

    return data.Images(list(range(count)), list(range(count)), read, transform)


def indices(loader: ImageLoader, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [[] if labels is None else labels.tolist() for _, labels, _ in loader.batches(epoch, start)]


def test_wrong_rule_for_unreadable_images():
    with pytest.raises(ValueError, match="on_bad_image must be one of stop, skip; got 'ignore'"):
        ImageLoader(numbers(2), 2, on_bad_image="ignore")


def test_the_order_is_new_each_epoch_and_with_each_seed_where_it_is_shuffled():
    orders = [
        [*chain(*indices(ImageLoader(numbers(50), 4, shuffle=True, seed=seed), epoch))]
        for seed, epoch in ((0, 1), (0, 2), (1, 1))
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in (*orders, range(50))}) == 4
    assert indices(ImageLoader(numbers(10), 4), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_an_epoch_is_taken_up_at_any_batch():
    loader = ImageLoader(numbers(23), 4, shuffle=True)
    whole = indices(loader, 5)
    assert len(whole) == len(loader) == 6
    for start in range(7):
        assert indices(loader, 5, start) == whole[start:]


@pytest.mark.parametrize(("count", "processes"), [(24, 2), (23, 2), (17, 4), (25, 3), (5, 4), (1, 3)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_each_batch_of_one_process(count, processes, shuffle):
    """Each image once, and as many batches for all."""
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
def test_what_is_drawn_for_an_image_depends_on_seed_epoch_and_image_alone():
    """Neither on its batch, nor on workers, processes or where the generators stand."""
    noise = v2.Lambda(lambda image: image + torch.rand(3, 1, 1))

    def drawn(epoch: int = 1, start: int = 0, **options: int) -> dict[int, float]:
        torch.rand(3)
        before = torch.get_rng_state()
        loader = ImageLoader(numbers(10, noise), **{"batch_size": 4, "shuffle": True, **options})
        found = {
            label: (image[0, 0, 0] - label).item()
            for images, labels, _ in loader.batches(epoch, start)
            for image, label in zip(images, labels.tolist(), strict=True)
        }
        assert torch.equal(torch.get_rng_state(), before)
        return found

    expected = drawn()
    assert len(set(expected.values())) == 10
    assert drawn(batch_size=2) == drawn(workers=2) == expected
    shared = drawn(rank=0, processes=2, batch_size=2) | drawn(rank=1, processes=2, batch_size=2)
    assert shared == expected
    late = drawn(start=1)
    assert late.items() <= expected.items()
    assert 0 < len(late) < 10
    assert not set(drawn(epoch=2).values()) & set(expected.values())
    assert not set(drawn(seed=1).values()) & set(expected.values())


def test_batches_name_their_images(photos):
    train, _, _ = data.load_datasets("imagefolder", photos, 16)
    batch = next(ImageLoader(train, 3).batches())
    assert batch.names == list(train.sources[:3])
    assert next(ImageLoader(numbers(5), 3).batches(0, 1)).names == ["image 3", "image 4"]


def damage(photos: Path) -> list[str]:
    """Makes three of the pictures unreadable, each in its own way."""
    empty, text, cut = photos / "blue" / "blue0.png", photos / "blue" / "blue1.png", photos / "red" / "red0.png"
    empty.write_bytes(b"")
    text.write_text("not a picture")
    cut.write_bytes(cut.read_bytes()[:200])
    return sorted(map(str, (empty, text, cut)))


def read_all(photos: Path, on_bad_image: str, workers: int = 0) -> ImageLoader:
    """Reads all pictures twice, in batches of three."""
    paths = sorted(map(str, photos.rglob("*.png")))
    pictures = data.Images(paths, list(range(len(paths))), data.read_image, presets.photo_eval(32))
    loader = ImageLoader(pictures, 3, workers=workers, on_bad_image=on_bad_image)
    for _ in range(2):
        seen = [label for images, labels in loader for label in labels.tolist()]
    loader.seen = [paths[label] for label in seen]
    return loader


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_named_once_and_counted(photos, capsys, workers):
    damaged = damage(photos)
    loader = read_all(photos, "skip", workers)
    assert sorted(loader.unreadable) == damaged
    assert sorted(loader.seen + damaged) == sorted(map(str, photos.rglob("*.png")))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for path in damaged:
        assert sum(path in line for line in lines) == 1


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_by_default(photos, workers):
    first = damage(photos)[0]
    with pytest.raises(ValueError, match="cannot be read as an image") as caught:
        read_all(photos, "stop", workers)
    assert first in str(caught.value)
    assert "\n" not in str(caught.value)


@forks
def test_ctrl_c_to_all_of_a_job_leaves_the_readers_alive():
    """It reaches them as well as the process that is to save and stop."""
    others = set(multiprocessing.active_children())
    batches = ImageLoader(numbers(40), 2, workers=2).batches()
    found = [next(batches).labels.tolist()]
    readers = set(multiprocessing.active_children()) - others
    assert len(readers) == 2
    for reader in readers:
        os.kill(reader.pid, signal.SIGINT)
    found += [batch.labels.tolist() for batch in batches]
    assert found == indices(ImageLoader(numbers(40), 2))


def test_readers_can_be_ended():
    """As torch does when their process exits; were SIGTERM held back, the process would wait for them for ever."""
    others = set(multiprocessing.active_children())
    batches = ImageLoader(numbers(400), 2, workers=1).batches()
    next(batches)
    (reader,) = set(multiprocessing.active_children()) - others
    reader.terminate()
    reader.join(5)
    assert not reader.is_alive()


def test_a_batch_of_nothing_but_unreadable_images_is_left_out(tmp_path):
    nothing = data.Images(["a", "b"], [0, 1], partial(open, mode="rb"), presets.photo_eval(32))
    assert list(ImageLoader(nothing, 2, on_bad_image="skip")) == []


def test_reading_and_testing_need_no_torchvision_layers(scripts):
    program = f"""
import sys
sys.modules["torchvision_layers"] = None  # makes its import fail
sys.path.insert(0, {str(scripts)!r})
import data, evaluation, loading, torch
_, test, _ = data.load_datasets("digits", image_size=8)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
print(len(evaluation.predict(model, loading.ImageLoader(test, 64)).predictions))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) == len(data.load_datasets("digits")[1])
