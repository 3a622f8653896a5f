"""What a run leaves to look at: a table of its epochs, TensorBoard's files, curves and confusions as pictures.

Nothing here needs ``torchvision_layers``.
"""

import csv
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from checkpoints import atomic_path
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

__all__ = ["Log", "plot_confusion", "plot_curves"]

MOST_MARKED = 50  # epochs with a mark each
MOST_NUMBERED = 20  # classes with numbers in the cells
MOST_NAMED = 60  # classes with names at the sides
LONGEST_NAME = 40


class Log:
    """Writes the history of a run to ``log.csv`` in its folder, one row an epoch, and for TensorBoard if wanted.

    A run that is killed and resumed leaves the same as one that was not. Each epoch is to be written before its
    checkpoint: one that the checkpoint does not hold is done again, and its first rows and events do not count.

    Args:
        output_dir: a folder that exists.
        tensorboard: also writes scalars to the folder ``tensorboard`` in it. Default: ``False``.
        start_epoch: epochs done before, by a run that this one resumes. Default: ``0``.

    Errors: ``ImportError`` if tensorboard is asked for and not installed; ``ValueError`` for a negative epoch.
    """

    def __init__(self, output_dir: str | Path, tensorboard: bool = False, start_epoch: int = 0) -> None:
        if start_epoch < 0:
            raise ValueError(f"start_epoch must be at least 0; got {start_epoch}")
        self.path = Path(output_dir) / "log.csv"
        self._writer, self._last_epoch = None, start_epoch
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("tensorboard is not installed: pip install tensorboard") from error
            folder = Path(output_dir) / "tensorboard"
            if not any(folder.glob("events.out.tfevents.*")):
                self._last_epoch = 0  # of a run that is resumed into another folder, this one tells the whole
            self._writer = SummaryWriter(str(folder), purge_step=self._last_epoch + 1)

    def write(self, history: list[dict[str, float]]) -> None:
        """Writes all epochs to the table, and to TensorBoard those that are new.

        Args:
            history: an entry for each epoch, from the first on; ``"epoch"`` counts from 1, all else are columns.

        Errors: ``ValueError`` for no entry, or one with other columns than the first.
        """
        if not history:
            raise ValueError("history must hold at least one epoch, got none")
        columns = list(history[0])
        for entry in history:
            if entry.keys() != history[0].keys():
                raise ValueError(
                    f"history must have the same columns in each epoch; the first has {', '.join(columns)}, "
                    f"epoch {entry.get('epoch')} has {', '.join(entry)}"
                )
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(history)
        if self._writer is None:
            return
        for entry in history:
            epoch = int(entry["epoch"])
            if epoch > self._last_epoch:
                for name, value in entry.items():
                    if name != "epoch":
                        self._writer.add_scalar(name, value, epoch)
                self._last_epoch = epoch
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def plot_curves(history: list[dict[str, float]], path: str | Path, title: str = "") -> None:
    """Draws loss and accuracy of the training and the test set over the epochs, as a picture at ``path``.

    Args:
        history: entries with ``epoch``, ``train_loss``, ``train_accuracy``, ``test_loss`` and ``test_accuracy``; where
            there is ``ema_accuracy``, of averaged weights on the test set, it is drawn as well.
        path: the suffix tells the format.
        title: above both. Default: none.

    Errors: ``ValueError`` for no entry.
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
    if max(losses) > 10 * min(losses) > 0:  # the first epochs can be tens of times the last
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
    marker = "o" if len(history) <= MOST_MARKED else None
    epochs, values = [entry["epoch"] for entry in history], [scale * entry[name] for entry in history]
    axes.plot(epochs, values, label=label, color=color, marker=marker, markersize=4)


def plot_confusion(matrix: Tensor, classes: list[str], path: str | Path, title: str = "") -> None:
    """Draws how often which class is taken for which, as a picture at ``path``.

    A cell is as dark as its share of the row is large, small shares being set off from none. Up to 20 classes have
    the counts in the cells, up to 60 their names at the sides.

    Args:
        matrix: counts, classes × classes; rows are the true classes, columns the predicted ones.
        classes: their names, in this order.
        path: the suffix tells the format.
        title: above the picture. Default: none.

    Errors: ``TypeError`` for a matrix that is not of integers; ``ValueError`` for one that is not square, has negative
    counts, or has not one row a class.
    """
    _check_confusion(matrix, classes)
    counts, count = matrix.cpu(), len(classes)
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    names = _shortened(classes) if count <= MOST_NAMED else []
    font_size = 9 if count <= MOST_NUMBERED else 7
    longest = max(map(len, names), default=0)
    side = max(3.0, 0.45 * count) if count <= MOST_NUMBERED else max(8.0, 0.14 * count * (count <= MOST_NAMED))
    margin = 1.0 + 0.65 * font_size / 72 * longest
    figure = Figure(figsize=(side + margin + 0.9, side + margin), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    image.set_zorder(axes.spines["top"].get_zorder() + 0.1)  # the frame would cover cells of two pixels
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format="{x:.0%}")
    bar.set_label("share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    # A name with dollar signs is no formula.
    style: dict[str, Any] = {"fontsize": font_size, "parse_math": False}
    axes.set_xticks(range(len(names)), names, rotation=90 if longest > 2 else 0, **style)
    axes.set_yticks(range(len(names)), names, **style)
    if count <= MOST_NUMBERED:
        for row in range(count):
            for column in range(count):
                number, share = counts[row, column].item(), shares[row, column].item()
                color = "white" if share > 0.4 else "black" if number else "0.75"
                axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=color, in_layout=False)
    dots = min(300, max(150, 2.4 * count / side))  # two pixels a class, up to 1,000 classes
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
    """The ends of long names; all names whole, where two would become the same."""
    end = (LONGEST_NAME - 1) // 2
    short = [name if len(name) <= LONGEST_NAME else f"{name[: end + 1]}…{name[-end:]}" for name in names]
    return short if len(set(short)) == len(set(names)) else names
