"""Checkpoints: written atomically, verified when read, with the last two kept."""

import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from .files import atomic_path, save_and_sync

T = TypeVar("T")
# Keys that a run needs to resume: its settings and all of ``TrainingState.state_dict`` except the model.
STATE = {"settings", "optimizer", "scheduler", "scaler", "model_ema", "averaged", "epoch", "step", "sums", "history"}
STATE |= {"generators"}


def previous(path: str | Path) -> Path:
    """The path to which :func:`save_checkpoint` moves the earlier checkpoint at ``path``."""
    path = Path(path)
    return path.with_name(f"{path.stem}_before{path.suffix}")


def save_checkpoint(state: dict[str, Any], path: Path, keep: bool = True) -> None:
    """Writes ``state`` to ``path`` and moves the earlier checkpoint to :func:`previous`.

    Args:
        state: contents of the checkpoint.
        path: file to write.
        keep: ``False`` if the earlier checkpoint is unusable: it is overwritten, and the previous one stays.
            Default: ``True``.

    Errors: ``OSError`` that names ``path`` if it cannot be written.
    """
    with atomic_path(path) as temporary:
        save_and_sync(state, temporary)
        if keep and path.exists():  # a kill between the two renames leaves only the previous one, which is then read
            os.replace(path, previous(path))


def read_resume(resume: str | None, path: Path, read: Callable[[Path], T]) -> T | None:
    """``read`` of the checkpoint that the option ``resume`` names, or of the last good one at ``path`` for ``"auto"``.

    Returns ``None`` if ``resume`` is ``None``, or if it is ``"auto"`` and there is no checkpoint yet.
    """
    if resume == "auto":
        return read_last_good(path, read)
    return None if resume is None else read(Path(resume))


def read_last_good(path: Path, read: Callable[[Path], T]) -> T | None:
    """``read`` of the checkpoint at ``path``, or of the previous one if that fails; ``None`` if neither exists.

    Raises:
        ValueError: if checkpoints exist, but none can be read.
    """
    problems = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            content = read(candidate)
        except ValueError as error:
            problems.append(str(error))
            print(f"warning: {error}", file=sys.stderr)
            continue
        if problems:
            print(f"warning: using {candidate}, the previous checkpoint", file=sys.stderr)
        return content
    if problems:
        raise ValueError(f"no checkpoint in {path.parent} can be resumed: {'; '.join(problems)}")
    return None


def load_checkpoint(path: str | Path, model_name: str, num_classes: int, kind: str = "float") -> dict[str, Any]:
    """Loads the checkpoint at ``path`` and checks that it is of the model.

    Args:
        path: a file that one of the scripts wrote.
        model_name: a name from ``models/__init__.py``.
        num_classes: size of the output.
        kind: kind of training, ``"float"`` or ``"quantization-aware"``. Default: ``"float"``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, not a checkpoint of these scripts, or of another model or kind.
    """
    with open(path, "rb") as file:
        try:
            if entry := zipfile.ZipFile(file).testzip():  # torch.load does not verify checksums
                raise zipfile.BadZipFile(f"{entry} is damaged")
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises almost anything for damaged or foreign files, OSError included
            message = f"{path} is damaged or not a checkpoint ({type(error).__name__} while reading it)"
            raise ValueError(message) from error
    if not isinstance(checkpoint, dict) or not {"model", "model_name", "num_classes", "classes"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint of these scripts: it does not name its model and classes")
    name, count = checkpoint["model_name"], checkpoint["num_classes"]
    if (name, count) != (model_name, num_classes):
        message = f"{path} is a checkpoint of {name} with {count} classes, not of {model_name} with {num_classes}"
        raise ValueError(message)
    if checkpoint.get("kind", "float") != kind:
        raise ValueError(
            f"{path} is a checkpoint of {checkpoint.get('kind', 'float')} training, not of {kind} training"
        )
    return checkpoint


def check_same(path: str | Path, name: str, value: object, expected: object) -> None:
    """Raises ``ValueError`` if the checkpoint at ``path`` has another value of the setting ``name``."""
    if value != expected:
        raise ValueError(f"{path} was made with {name} {value}, not {expected}")


def load_resumable(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint at ``path``; ``ValueError`` if it cannot be resumed or belongs to another run than ``about``."""
    checkpoint = load_checkpoint(path, about["model_name"], about["num_classes"], about.get("kind", "float"))
    if "optimizer" not in checkpoint:
        raise ValueError(f"{path} holds only weights: start from it with --weights {path}, it cannot be resumed")
    if missing := STATE - checkpoint.keys():
        raise ValueError(f"{path} is from another version of these scripts: it lacks {', '.join(sorted(missing))}")
    check_same(path, "classes", checkpoint["classes"], about["classes"])
    check_same(path, "size", model_arguments(checkpoint), about["model_arguments"])
    for name, value in about["settings"].items():
        check_same(path, name, checkpoint["settings"].get(name), value)
    return checkpoint


def model_arguments(checkpoint: dict[str, Any]) -> dict[str, float]:
    """Width and depth multipliers of the model in a checkpoint."""
    return checkpoint.get("model_arguments", {"width_mult": 1.0, "depth_mult": 1.0})
