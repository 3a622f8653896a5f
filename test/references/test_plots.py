"""Learning curves and confusion matrices."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from common.runs import plots
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from ._support import epochs


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are saved during the test."""
    figures, save = [], Figure.savefig

    def savefig(figure: Figure, *args: object, **settings: object) -> None:
        figures.append(figure)
        save(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axes.get_lines()}


def test_curves(tmp_path, figures):
    history = [{**entry, "ema_accuracy": 0.9} for entry in epochs(1, 2, 3)]
    plots.plot_curves(history, tmp_path / "curves.png", title="a title")
    loss, accuracy = figures[0].axes
    curves = lines(loss)
    assert curves.keys() == {"train", "test"}
    for split in ("train", "test"):
        assert curves[split] == ([1, 2, 3], [entry[f"{split}_loss"] for entry in history])
    curves = lines(accuracy)
    assert curves.keys() == {"train", "test", "test, averaged weights"}
    assert curves["test, averaged weights"] == ([1, 2, 3], [90, 90, 90])
    for split in ("train", "test"):
        assert curves[split] == ([1, 2, 3], [100 * entry[f"{split}_accuracy"] for entry in history])
    for axes in (loss, accuracy):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines(axes))
        assert axes.get_xlabel() == "epoch"
    assert figures[0].get_suptitle() == "a title"

    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height > 300
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_curves_without_averaged_weights(tmp_path, figures):
    plots.plot_curves(epochs(1, 2), tmp_path / "curves.png")
    assert lines(figures[0].axes[1]).keys() == {"train", "test"}
    with pytest.raises(ValueError, match="history must hold at least one epoch"):
        plots.plot_curves([], tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([2.31, 2.30, 2.29], "linear"), ([30.0, 2.0, 0.1], "log"), ([1.0, 0.0], "linear"), ([0.0], "linear")],
)
def test_loss_axis_has_ticks_for_any_range(tmp_path, figures, losses, scale):
    history = [
        {**entry, "train_loss": loss, "test_loss": loss}
        for entry, loss in zip(epochs(*range(1, len(losses) + 1)), losses, strict=True)
    ]
    plots.plot_curves(history, tmp_path / "curves.png")
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


def test_confusion_matrix(tmp_path, figures):
    """Cells show counts, and their colours shares; the row of a class without images is white."""
    plots.plot_confusion(CONFUSION, ["cat", "a$b$", "dog"], tmp_path / "confusion.png", title="a title")
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

    with Image.open(tmp_path / "confusion.png") as file:
        pixels = np.asarray(file.convert("RGB")) / 255
    colours = image.to_rgba(shares)[..., :3]
    for row in range(3):
        for column in range(3):
            x, y = axes.transData.transform((column + 0.4, row + 0.4)) * 150 / figures[0].dpi
            assert np.abs(pixels[round(len(pixels) - y), round(x)] - colours[row, column]).max() < 0.01
            # The number contrasts with its cell.
            number = to_rgb(cells[row, column].get_color())
            contrast = np.abs(np.subtract(number, colours[row, column])).max()
            assert contrast > (0.6 if CONFUSION[row, column] else 0.15)
    assert colours[0, 0].sum() < colours[2, 0].sum() < colours[0, 1].sum() < colours[0, 2].sum()  # more is darker
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]


@pytest.mark.parametrize(
    ("count", "numbers", "names"), [(1, 1, 1), (20, 400, 20), (21, 0, 21), (60, 0, 60), (61, 0, 0)]
)
def test_counts_and_names_fit(tmp_path, figures, count, numbers, names):
    classes = [f"a class of the name {number}, neither long nor short" for number in range(count)]
    plots.plot_confusion(torch.eye(count, dtype=torch.long), classes, tmp_path / "confusion.png")
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


def test_long_names_are_shortened_if_they_stay_distinct(tmp_path, figures):
    for classes, expected in (
        (["short", 30 * "a" + 30 * "b"], ["short", 20 * "a" + "…" + 19 * "b"]),
        ([30 * "a" + "1" + 30 * "b", 30 * "a" + "2" + 30 * "b"], None),
    ):
        plots.plot_confusion(torch.eye(2, dtype=torch.long), classes, tmp_path / "confusion.png")
        assert [text.get_text() for text in figures[-1].axes[0].get_yticklabels()] == (expected or classes)


def test_thousand_classes(tmp_path, figures):
    """Every cell is visible: it is two pixels wide."""
    matrix = 50 * torch.eye(1000, dtype=torch.long)
    matrix[123, 456], matrix[123, 123] = 25, 25
    plots.plot_confusion(matrix, [f"n{number:08}" for number in range(1000)], tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert len(axes.texts) == 0
    with Image.open(tmp_path / "confusion.png") as file:
        pixels = np.asarray(file.convert("RGB")).astype(int)
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
def test_bad_matrices(tmp_path, matrix, error, message):
    with pytest.raises(error, match=message):
        plots.plot_confusion(matrix, ["a", "b"], tmp_path / "confusion.png")
    assert list(tmp_path.iterdir()) == []
