"""What the scripts share: seeds, files that are whole or absent, checkpoints, evaluation, curves.

Nothing here needs ``torchvision_layers``: a trained artefact can be tested in a process that does not have it.
"""

import os
import random
import sys
import tempfile
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from data import ImageLoader
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor, nn
from tqdm import tqdm

# What a number given on the command line must fulfil; NaN fulfils none.
RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "batch_size": (lambda value: value >= 2, "at least 2, for batch statistics"),
    "calibration_batches": (lambda value: value >= 1, "at least 1"),
    "epochs": (lambda value: value >= 1, "at least 1"),
    "frozen_epochs": (lambda value: value >= 0, "at least 0"),
    "label_smoothing": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "lr": (lambda value: 0 < value < float("inf"), "positive and finite"),
    "momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "rounds": (lambda value: value >= 1, "at least 1"),
    "seed": (lambda value: value >= 0, "at least 0"),
    "weight_decay": (lambda value: 0 <= value < float("inf"), "at least 0 and finite"),
    "workers": (lambda value: value >= 0, "at least 0"),
}


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Keeps the lines of a description, and tells each default that there is."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def check_numbers(args: Namespace) -> None:
    """Raises ``ValueError`` for the first number in ``args`` that breaks its rule."""
    for name, value in vars(args).items():
        if name in RULES:
            holds, rule = RULES[name]
            if not holds(value):
                raise ValueError(f"{name} must be {rule}; got {value}")


def run_as_script(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Calls ``main``; what the user did wrong becomes one line on stderr and exit status 2."""
    try:
        main(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seeds python, numpy and torch, each epoch in its own way.

    With the seed of an epoch depending on nothing before it, a resumed run needs no saved state of any generator.
    Orders, augmentations and the seeds of loader workers are all drawn from torch's global generator.
    """
    number = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Inside, an operator that could give another result when run again raises instead.

    For training alone: int8 operators have no implementation that torch calls deterministic.
    """
    enabled, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def check_output_dir(path: str | Path) -> Path:
    """The folder, created where missing and shown to be writable; ``OSError`` naming it otherwise."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"output_dir {path} cannot be written to: {error.strerror}") from error
    return path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` when the block succeeds; otherwise ``path`` stays as it was.

    The name is in the same folder and keeps the suffix, by which writers of pictures know the format.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_atomically(obj: object, path: str | Path) -> None:
    """``torch.save`` that leaves the earlier file whole if it is interrupted."""
    with atomic_path(path) as temporary:
        torch.save(obj, temporary)


def load_checkpoint(path: str | Path, model_name: str, num_classes: int, kind: str = "float") -> dict[str, Any]:
    """The checkpoint at ``path``, which must hold such a model.

    Args:
        path: a file of one of the scripts.
        model_name: a name from ``models/__init__.py``.
        num_classes: size of the output.
        kind: of the training, ``"float"`` or ``"quantization-aware"``. Default: ``"float"``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged, not a checkpoint of these scripts, or of another model or kind.
    """
    with open(path, "rb") as file:
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # for a damaged or foreign file torch raises almost anything, OSError too
            message = f"{path} is not a checkpoint, or a damaged one ({type(error).__name__} on reading it)"
            raise ValueError(message) from error
    if not isinstance(checkpoint, dict) or not {"model", "model_name", "num_classes", "classes"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint of these scripts: it does not say which model it is of")
    found = checkpoint["model_name"], checkpoint["num_classes"]
    if found != (model_name, num_classes):
        raise ValueError(
            f"{path} is a checkpoint of {found[0]} with {found[1]} classes, not of {model_name} with {num_classes}"
        )
    found_kind = checkpoint.get("kind", "float")
    if found_kind != kind:
        raise ValueError(f"{path} is a checkpoint of {found_kind} training, not of {kind} training")
    return checkpoint


class Evaluation(NamedTuple):
    """What :func:`evaluate` found; ``outputs``, ``predictions`` and ``labels`` in the order of the loader."""

    accuracy: float
    loss: float
    outputs: Tensor
    predictions: Tensor
    labels: Tensor


@torch.inference_mode()
def evaluate(model: nn.Module, loader: ImageLoader, *, label_smoothing: float = 0.0) -> Evaluation:
    """Predicts every image of ``loader``; leaves the model in evaluation mode.

    Raises:
        ValueError: if there is no image that can be read.
    """
    model.eval()
    outputs, labels = [], []
    with tqdm(total=len(loader.dataset), desc="test", unit=" images", leave=False) as bar:
        for images, batch_labels in loader:
            outputs.append(model(images))
            labels.append(batch_labels)
            bar.update(len(images))
    if not labels:
        raise ValueError("none of the test images can be read")
    output, label = torch.cat(outputs), torch.cat(labels)
    prediction = output.argmax(dim=1)
    accuracy = (prediction == label).sum().item() / len(label)
    loss = nn.functional.cross_entropy(output, label, label_smoothing=label_smoothing).item()
    return Evaluation(accuracy, loss, output, prediction, label)


def plot_curves(history: list[dict[str, float]], path: str | Path, title: str = "") -> None:
    """Draws loss and accuracy of the training and the test set over the epochs, as a picture at ``path``."""
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, name, label, scale in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("cross-entropy", "accuracy (%)"), (1, 100), strict=True
    ):
        for split, color in (("train", "tab:blue"), ("test", "tab:orange")):
            values = [scale * entry[f"{split}_{name}"] for entry in history]
            axes.plot(epochs, values, label=split, color=color, marker="o", markersize=4)
        if name == "loss":  # the first epochs can be tens of times the last
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
