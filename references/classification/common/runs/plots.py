"""Learning curves and confusion matrix of a run."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from .files import atomic_path

__all__ = ["plot_confusion", "plot_curves"]

MAX_MARKED_EPOCHS = 50
MAX_CLASSES_WITH_COUNTS = 20
MAX_CLASSES_WITH_NAMES = 60
MAX_NAME_LENGTH = 40


def plot_curves(history: list[dict[str, float]], path: str | Path, title: str = "") -> None:
    """Plots loss and accuracy on the training and the test set over the epochs.

    Args:
        history: entries with ``epoch``, ``train_loss``, ``train_accuracy``, ``test_loss`` and ``test_accuracy``, and
            optionally ``ema_accuracy``, the test accuracy of the averaged weights.
        path: file to write; the suffix sets the format.
        title: title of the figure. Default: none.

    Errors: ``ValueError`` if there is no entry.
    """
    if not history:
        raise ValueError("history must hold at least one epoch, got none")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, accuracy = figure.subplots(1, 2)
    for split, color in (("train", "tab:blue"), ("test", "tab:orange")):
        _draw_curve(loss, history, f"{split}_loss", 1, split, color)
        _draw_curve(accuracy, history, f"{split}_accuracy", 100, split, color)
    averaged = [entry for entry in history if "ema_accuracy" in entry]
    if averaged:
        _draw_curve(accuracy, averaged, "ema_accuracy", 100, "test, averaged weights", "tab:green")
    losses = [entry[f"{split}_loss"] for entry in history for split in ("train", "test")]
    if max(losses) > 10 * min(losses) > 0:  # the loss of the first epoch can be tens of times that of the last
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_locator(NullLocator())
    for axes, label in ((loss, "cross-entropy"), (accuracy, "accuracy (%)")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw_curve(axes: Axes, history: list[dict[str, float]], name: str, scale: float, label: str, color: str) -> None:
    marker = "o" if len(history) <= MAX_MARKED_EPOCHS else None
    epochs, values = [entry["epoch"] for entry in history], [scale * entry[name] for entry in history]
    axes.plot(epochs, values, label=label, color=color, marker=marker, markersize=4)


def plot_confusion(matrix: Tensor, classes: list[str], path: str | Path, title: str = "") -> None:
    """Plots a confusion matrix.

    The colour of a cell is its share of the row, on a scale that sets small shares off from zero. With up to 20
    classes cells show their counts; with up to 60 the axes show the names of the classes.

    Args:
        matrix: counts, classes × classes; rows are the true classes, columns the predicted ones.
        classes: names of the classes, in the same order.
        path: file to write; the suffix sets the format.
        title: title of the figure. Default: none.

    Errors: ``TypeError`` if the matrix does not hold integers; ``ValueError`` if it is not square, has negative
    counts, or does not have one row per class.
    """
    _check_confusion(matrix, classes)
    counts, count = matrix.cpu(), len(classes)
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    names = _shortened(classes) if count <= MAX_CLASSES_WITH_NAMES else []
    font_size = 9 if count <= MAX_CLASSES_WITH_COUNTS else 7
    longest = max(map(len, names), default=0)
    side = (
        max(3.0, 0.45 * count)
        if count <= MAX_CLASSES_WITH_COUNTS
        else max(8.0, 0.14 * count * (count <= MAX_CLASSES_WITH_NAMES))
    )
    margin = 1.0 + 0.65 * font_size / 72 * longest
    figure = Figure(figsize=(side + margin + 0.9, side + margin), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    image.set_zorder(axes.spines["top"].get_zorder() + 0.1)  # the frame would cover cells that are two pixels wide
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format="{x:.0%}")
    bar.set_label("share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    # A name with dollar signs is not a formula.
    style: dict[str, Any] = {"fontsize": font_size, "parse_math": False}
    axes.set_xticks(range(len(names)), names, rotation=90 if longest > 2 else 0, **style)
    axes.set_yticks(range(len(names)), names, **style)
    if count <= MAX_CLASSES_WITH_COUNTS:
        for row in range(count):
            for column in range(count):
                number, share = counts[row, column].item(), shares[row, column].item()
                color = "white" if share > 0.4 else "black" if number else "0.75"
                axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=color, in_layout=False)
    dots = min(300, max(150, 2.4 * count / side))  # two pixels per class with up to 1,000 classes
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dots)


def _check_confusion(matrix: Tensor, classes: list[str]) -> None:
    if matrix.is_floating_point() or matrix.is_complex() or matrix.dtype == torch.bool:
        raise TypeError(f"matrix must hold integers, got {matrix.dtype}")
    if not classes or matrix.shape != (len(classes), len(classes)):
        raise ValueError(
            f"matrix must have a row and a column for each class, got {list(matrix.shape)} for {len(classes)} classes"
        )
    if (matrix < 0).any():
        raise ValueError(f"matrix must hold counts of at least 0, got {matrix.min().item()}")


def _shortened(names: list[str]) -> list[str]:
    """Names with the middle of long ones left out, or the full names if two would become equal."""
    end = (MAX_NAME_LENGTH - 1) // 2
    short = [name if len(name) <= MAX_NAME_LENGTH else f"{name[: end + 1]}…{name[-end:]}" for name in names]
    return short if len(set(short)) == len(set(names)) else names
