"""Files that are either complete or absent, and output directories that can be written to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to ``path`` if the block succeeds; otherwise ``path`` does not change.

    It is in the same directory and has the same suffix, from which image writers infer the format.

    Raises:
        OSError: if ``path`` cannot be written; the message names it.
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
    """``torch.save`` that keeps the earlier file if it is interrupted or the disk is full."""
    with atomic_path(path) as temporary:
        save_and_sync(obj, temporary)


def save_and_sync(obj: object, path: Path) -> None:
    """``torch.save``, then ``fsync``; raises the original ``OSError`` if writing fails."""
    with open(path, "wb") as file:
        try:
            torch.save(obj, file)
        except RuntimeError as error:  # torch replaces the error of the write with this one
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def check_output_dir(path: str | Path) -> Path:
    """Creates the directory if needed and checks that it is writable; the ``OSError`` names it if not."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"output_dir {path} cannot be written to: {error.strerror}") from error
    return path
