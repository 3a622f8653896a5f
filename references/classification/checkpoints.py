"""Files that are whole or absent, and checkpoints: written so, checked when read, the last two kept.

Nothing here needs ``torchvision_layers``: a trained artefact can be tested in a process that does not have it.
"""

import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
# Of a run, beside its model: what ``Training.state`` makes, and what it was started with.
STATE = {"settings", "optimizer", "scheduler", "scaler", "model_ema", "averaged", "epoch", "step", "sums", "history"}
STATE |= {"generators"}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` when the block succeeds; otherwise ``path`` stays as it was.

    The name is in the same folder and keeps the suffix, by which writers of pictures know the format.

    Raises:
        OSError: naming ``path``, where it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_atomically(obj: object, path: str | Path) -> None:
    """``torch.save`` that leaves the earlier file whole if it is interrupted, or the disk is full."""
    with atomic_path(path) as temporary:
        _save(obj, temporary)


def _save(obj: object, path: Path) -> None:
    """``torch.save`` to a file of Python's, and to the disk."""
    with open(path, "wb") as file:
        try:
            torch.save(obj, file)
        except RuntimeError as error:  # which torch puts in the place of what writing raised
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def before(path: str | Path) -> Path:
    """Where the checkpoint is that was at ``path`` before the last one."""
    path = Path(path)
    return path.with_name(f"{path.stem}_before{path.suffix}")


def save_checkpoint(state: dict[str, Any], path: Path, keep: bool = True) -> None:
    """Writes a checkpoint to ``path``; what was there stays, as :func:`before` names it.

    Args:
        state: what it holds.
        path: where it goes.
        keep: ``False`` where what is there cannot be used: then the one before stays. Default: ``True``.

    Errors: ``OSError`` naming ``path``, where it cannot be written.
    """
    with atomic_path(path) as temporary:
        _save(state, temporary)
        if keep and path.exists():  # a kill between the two renames leaves this one alone, which is taken then
            os.replace(path, before(path))


def first_good(path: Path, read: Callable[[Path], T]) -> T | None:
    """What ``read`` makes of the checkpoint at ``path``, or else of the one before; ``None`` where there is neither.

    Raises:
        ValueError: if there are some, and none can be used.
    """
    problems = []
    for candidate in (path, before(path)):
        if not candidate.exists():
            continue
        try:
            found = read(candidate)
        except ValueError as error:
            problems.append(str(error))
            print(f"warning: {error}", file=sys.stderr)
            continue
        if problems:
            print(f"warning: {candidate}, the one before, is used", file=sys.stderr)
        return found
    if problems:
        raise ValueError(f"no checkpoint in {path.parent} can be resumed: {'; '.join(problems)}")
    return None


def resumed(resume: str | None, path: Path, read: Callable[[Path], T]) -> T | None:
    """What ``read`` makes of the checkpoint at ``resume``, or with ``"auto"`` of the last good one at ``path``.

    ``None`` where ``resume`` is ``None``, or ``"auto"`` and there is none yet. Errors: those of ``read``.
    """
    if resume == "auto":
        return first_good(path, read)
    return None if resume is None else read(Path(resume))


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
            if damaged := zipfile.ZipFile(file).testzip():  # torch.load itself compares no checksums
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            file.seek(0)
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


def check_same(path: str | Path, name: str, found: object, wanted: object) -> None:
    """Raises ``ValueError`` where the checkpoint at ``path`` was made with another ``name``."""
    if found != wanted:
        raise ValueError(f"{path} was made with {name} {found}, not {wanted}")


def read_resumable(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint at ``path``; ``ValueError`` if it cannot be resumed, or is of another run than ``about``."""
    checkpoint = load_checkpoint(path, about["model_name"], about["num_classes"], about.get("kind", "float"))
    if "optimizer" not in checkpoint:
        raise ValueError(f"{path} holds weights alone: they can be started from, but not resumed")
    if missing := STATE - checkpoint.keys():
        raise ValueError(
            f"{path} is not a checkpoint of these scripts as they are: it lacks {', '.join(sorted(missing))}"
        )
    check_same(path, "classes", checkpoint["classes"], about["classes"])
    check_same(path, "size", model_arguments(checkpoint), about["model_arguments"])
    for name, value in about["settings"].items():
        check_same(path, name, checkpoint["settings"].get(name), value)
    return checkpoint


def model_arguments(checkpoint: dict[str, Any]) -> dict[str, float]:
    """Width and depth of the model in a checkpoint."""
    return checkpoint.get("model_arguments", {"width_mult": 1.0, "depth_mult": 1.0})
