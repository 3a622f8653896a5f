import csv
import sys
from itertools import pairwise
from pathlib import Path

import logs
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image


def epochs(*numbers: int, shift: float = 0.0) -> list[dict[str, float]]:
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr")
    return [
        {"epoch": number, **{name: shift + 1 / (number + place) for place, name in enumerate(names)}}
        for number in numbers
    ]


def read_table(folder: Path) -> list[dict[str, float]]:
    with open(folder / "log.csv", newline="") as file:
        return [
            {name: int(text) if name == "epoch" else float(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def test_the_table_has_a_row_for_each_epoch(tmp_path):
    history = epochs(1, 2, 3)
    with logs.Log(tmp_path) as log:
        for count in (1, 2, 3):
            log.write(history[:count])
            assert read_table(tmp_path) == history[:count]  # no digit is lost
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == ",".join(history[0])
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_resumed_run_leaves_no_row_twice(tmp_path):
    with logs.Log(tmp_path) as log:
        log.write(epochs(1, 2, 3))
    history = epochs(1, 2) + epochs(3, shift=1.0)
    with logs.Log(tmp_path, start_epoch=2) as log:
        log.write(history)
    assert read_table(tmp_path) == history


class Unprintable(float):
    def __repr__(self):
        raise KeyboardInterrupt

    __str__ = __repr__


def test_an_interrupted_write_leaves_the_earlier_table(tmp_path):
    with logs.Log(tmp_path) as log:
        log.write(epochs(1))
        with pytest.raises(KeyboardInterrupt):
            log.write([{**epochs(1)[0], "lr": Unprintable()}, *epochs(2)])
    assert read_table(tmp_path) == epochs(1)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_histories_that_cannot_be_written(tmp_path):
    with logs.Log(tmp_path) as log:
        with pytest.raises(ValueError, match="history must hold at least one epoch, got none"):
            log.write([])
        for other in ({"epoch": 2, "train_loss": 1.0}, {**epochs(2)[0], "more": 1.0}):
            with pytest.raises(
                ValueError, match=f"the first has {', '.join(epochs(1)[0])}, epoch 2 has {', '.join(other)}"
            ):
                log.write([*epochs(1), other])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="start_epoch must be at least 0; got -1"):
        logs.Log(tmp_path, start_epoch=-1)


@pytest.fixture
def scalars(monkeypatch):
    """Reads back what TensorBoard would show: for each name, the steps and the values."""
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # Files of one second are told apart by this count, and read in the order of their names as texts.
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))

    def read(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
        events = accumulator.EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        return {
            name: ([event.step for event in events.Scalars(name)], [event.value for event in events.Scalars(name)])
            for name in events.Tags()["scalars"]
        }

    return read


def shown(history: list[dict[str, float]]) -> dict[str, tuple[list[int], list[float]]]:
    """What is to be read back of ``history``."""
    return {
        name: ([entry["epoch"] for entry in history], [pytest.approx(entry[name], rel=1e-6) for entry in history])
        for name in history[0]
        if name != "epoch"
    }


def test_tensorboard_shows_each_epoch_once_it_is_written(tmp_path, scalars):
    history = epochs(1, 2, 3)
    with logs.Log(tmp_path, tensorboard=True) as log:
        for count in (1, 2, 3):
            log.write(history[:count])
            assert scalars(tmp_path) == shown(history[:count])
    assert scalars(tmp_path) == shown(history)
    assert read_table(tmp_path) == history


@pytest.mark.parametrize("cut", [0, 7])
def test_tensorboard_shows_redone_epochs_once(tmp_path, scalars, cut):
    """The first run is killed after the events of epoch 3, or in the midst of them, and before its checkpoint."""
    with logs.Log(tmp_path, tensorboard=True) as log:
        log.write(epochs(1, 2, 3))
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[: -cut or None])
    history = epochs(1, 2) + epochs(3, 4, shift=1.0)
    with logs.Log(tmp_path, tensorboard=True, start_epoch=2) as log:
        log.write(history[:3])
        log.write(history)
    assert scalars(tmp_path) == shown(history)


def test_tensorboard_shows_the_whole_run_in_another_folder(tmp_path, scalars):
    with logs.Log(tmp_path, tensorboard=True, start_epoch=2) as log:
        log.write(epochs(1, 2, 3))
    assert scalars(tmp_path) == shown(epochs(1, 2, 3))


def test_tensorboard_forgets_an_earlier_run_in_the_folder(tmp_path, scalars):
    with logs.Log(tmp_path, tensorboard=True) as log:
        log.write(epochs(1, 2, 3))
    with logs.Log(tmp_path, tensorboard=True) as log:
        log.write(epochs(1, shift=1.0))
    assert scalars(tmp_path) == shown(epochs(1, shift=1.0))


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        logs.Log(tmp_path, tensorboard=True)
    with logs.Log(tmp_path) as log:
        log.write(epochs(1))


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    saved, save = [], Figure.savefig

    def savefig(figure: Figure, *args: object, **settings: object) -> None:
        saved.append(figure)
        save(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axes.get_lines()}


def test_curves(tmp_path, figures):
    history = [{**entry, "ema_accuracy": 0.9} for entry in epochs(1, 2, 3)]
    logs.plot_curves(history, tmp_path / "curves.png", title="a title")
    loss, accuracy = figures[0].axes
    found = lines(loss)
    assert found.keys() == {"train", "test"}
    for split in ("train", "test"):
        assert found[split] == ([1, 2, 3], [entry[f"{split}_loss"] for entry in history])
    found = lines(accuracy)
    assert found.keys() == {"train", "test", "test, averaged weights"}
    assert found["test, averaged weights"] == ([1, 2, 3], [90, 90, 90])
    for split in ("train", "test"):
        assert found[split] == ([1, 2, 3], [100 * entry[f"{split}_accuracy"] for entry in history])
    for axes in (loss, accuracy):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines(axes))
        assert axes.get_xlabel() == "epoch"
    assert figures[0].get_suptitle() == "a title"

    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_curves_without_averaged_weights(tmp_path, figures):
    logs.plot_curves(epochs(1, 2), tmp_path / "curves.png")
    assert lines(figures[0].axes[1]).keys() == {"train", "test"}
    with pytest.raises(ValueError, match="history must hold at least one epoch"):
        logs.plot_curves([], tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([2.31, 2.30, 2.29], "linear"), ([30.0, 2.0, 0.1], "log"), ([1.0, 0.0], "linear"), ([0.0], "linear")],
)
def test_losses_of_any_range_have_numbers_beside_them(tmp_path, figures, losses, scale):
    history = [
        {**entry, "train_loss": loss, "test_loss": loss}
        for entry, loss in zip(epochs(*range(1, len(losses) + 1)), losses, strict=True)
    ]
    logs.plot_curves(history, tmp_path / "curves.png")
    axes = figures[0].axes[0]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low < min(losses) <= max(losses) < high
    assert len([tick for tick in axes.get_yticks() if low <= tick <= high]) >= 3
    left, right = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


CONFUSION = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 3]])


def test_confusions(tmp_path, figures):
    """A class without images is a white row; counts stand in the cells, shares are their colours."""
    logs.plot_confusion(CONFUSION, ["cat", "a$b$", "dog"], tmp_path / "confusion.png", title="a title")
    axes = figures[0].axes[0]
    assert axes.get_title() == "a title"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    for axis in (axes.xaxis, axes.yaxis):
        assert [text.get_text() for text in axis.get_ticklabels()] == ["cat", "a$b$", "dog"]
        assert list(axis.get_ticklocs()) == [0, 1, 2]
        assert not any(text.get_parse_math() for text in axis.get_ticklabels())
    cells = {tuple(map(int, reversed(text.get_position()))): text for text in axes.texts}
    assert {cell: int(text.get_text()) for cell, text in cells.items()} == {
        (row, column): CONFUSION[row, column].item() for row in range(3) for column in range(3)
    }
    shares = np.array([[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]])
    (image,) = axes.get_images()
    assert np.allclose(image.get_array(), shares)
    assert image.get_clim() == (0, 1)

    with Image.open(tmp_path / "confusion.png") as picture:
        pixels = np.asarray(picture.convert("RGB")) / 255
    colours = image.to_rgba(shares)[..., :3]
    for row in range(3):
        for column in range(3):
            x, y = axes.transData.transform((column + 0.4, row + 0.4)) * 150 / figures[0].dpi
            assert np.abs(pixels[round(len(pixels) - y), round(x)] - colours[row, column]).max() < 0.01
            # Numbers can be read on what is behind them.
            number = to_rgb(cells[row, column].get_color())
            contrast = np.abs(np.subtract(number, colours[row, column])).max()
            assert contrast > (0.6 if CONFUSION[row, column] else 0.15)
    assert colours[0, 0].sum() < colours[2, 0].sum() < colours[0, 1].sum() < colours[0, 2].sum()  # more is darker
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]


@pytest.mark.parametrize(
    ("count", "numbers", "names"), [(1, 1, 1), (20, 400, 20), (21, 0, 21), (60, 0, 60), (61, 0, 0)]
)
def test_as_much_is_written_as_there_is_room_for(tmp_path, figures, count, numbers, names):
    classes = [f"a class of the name {number}, neither long nor short" for number in range(count)]
    logs.plot_confusion(torch.eye(count, dtype=torch.long), classes, tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert len(axes.texts) == numbers
    figures[0].set_dpi(150)  # as it was saved
    figures[0].canvas.draw()
    width, height = figures[0].get_size_inches() * 150
    for axis in (axes.xaxis, axes.yaxis):
        labels = axis.get_ticklabels()
        assert len(labels) == names
        boxes = [label.get_window_extent() for label in labels]
        for box in boxes:
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= width
            assert box.y1 <= height
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))
    for text in axes.texts:
        assert text.get_window_extent().width < axes.get_window_extent().width / count


def test_long_names_are_shortened_where_they_stay_apart(tmp_path, figures):
    for classes, expected in (
        (["short", 30 * "a" + 30 * "b"], ["short", 20 * "a" + "…" + 19 * "b"]),
        ([30 * "a" + "1" + 30 * "b", 30 * "a" + "2" + 30 * "b"], None),
    ):
        logs.plot_confusion(torch.eye(2, dtype=torch.long), classes, tmp_path / "confusion.png")
        assert [text.get_text() for text in figures[-1].axes[0].get_yticklabels()] == (expected or classes)


def test_a_thousand_classes(tmp_path, figures):
    """No cell is left out of the picture: each is two pixels wide."""
    matrix = 50 * torch.eye(1000, dtype=torch.long)
    matrix[123, 456], matrix[123, 123] = 25, 25
    logs.plot_confusion(matrix, [f"n{number:08}" for number in range(1000)], tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert len(axes.texts) == 0
    with Image.open(tmp_path / "confusion.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    scale = len(pixels) / figures[0].get_window_extent().height
    assert axes.get_window_extent().height * scale > 2000

    def pixel(row: int, column: int) -> list[int]:
        x, y = axes.transData.transform((column, row)) * scale
        return pixels[int(len(pixels) - y), int(x)].tolist()

    dark, middle, white = (
        [round(255 * value) for value in axes.images[0].to_rgba(share)[:3]] for share in (1.0, 0.5, 0.0)
    )
    for number in (0, 1, 2, 500, 501, 998, 999):
        assert np.abs(np.subtract(pixel(number, number), dark)).max() <= 1
    assert np.abs(np.subtract(pixel(123, 456), middle)).max() <= 1
    for row, column in ((123, 455), (123, 457), (122, 456), (124, 456), (456, 123)):
        assert np.abs(np.subtract(pixel(row, column), white)).max() <= 1


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.eye(2), TypeError, "matrix must hold integers, got torch.float32"),
        (torch.eye(2, dtype=torch.bool), TypeError, "matrix must hold integers, got torch.bool"),
        (torch.eye(3, dtype=torch.long), ValueError, r"for each class, got \[3, 3\] for 2 classes"),
        (torch.ones(2, 3, dtype=torch.long), ValueError, r"for each class, got \[2, 3\] for 2 classes"),
        (torch.ones(2, dtype=torch.long), ValueError, r"for each class, got \[2\] for 2 classes"),
        (torch.tensor([[1, -2], [0, 1]]), ValueError, "matrix must hold counts of at least 0, got -2"),
    ],
)
def test_matrices_that_are_no_confusions(tmp_path, matrix, error, message):
    with pytest.raises(error, match=message):
        logs.plot_confusion(matrix, ["a", "b"], tmp_path / "confusion.png")
    assert list(tmp_path.iterdir()) == []
