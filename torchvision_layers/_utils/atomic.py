"""Atomic writing of files."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path"]


@contextmanager
def atomic_path(path: str | Path, beside: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to ``path`` if the block succeeds.

    The temporary file is in the same folder, because a rename is atomic only within a file system, and has the same
    suffix, because some writers infer the format from it. After an error the temporary file is deleted, and an earlier
    file at ``path`` is unchanged. If ``path`` is a symbolic link, its target is replaced.

    The block may create a folder in place of a file. It also creates a file for each suffix in ``beside``, next to the
    temporary path. All of them are renamed, or none; only a process that is killed during the renames can leave a part
    of them, and the earlier ones under temporary names.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    targets = {temporary.with_suffix(suffix): target.with_suffix(suffix) for suffix in (*beside, target.suffix)}
    try:
        yield temporary
        for file in targets:
            for part in file.rglob("*") if file.is_dir() else [file]:
                if not part.is_dir():
                    with open(part, "rb+") as opened:
                        os.fsync(opened.fileno())
        if len(targets) == 1 and not temporary.is_dir():
            os.replace(temporary, target)
        else:
            _rename_all(targets)
    finally:
        for file in targets:
            _remove(file)
    if os.name == "posix":  # the rename is durable only after its folder is synced
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _rename_all(targets: Mapping[Path, Path]) -> None:
    """Renames files and folders. Earlier ones have temporary names meanwhile, and return after an error."""
    earlier, renamed = dict[Path, Path](), list[Path]()
    try:
        for temporary, target in targets.items():
            if target.exists():
                backup = temporary.with_name(f"{temporary.name}.earlier")
                os.rename(target, backup)
                earlier[backup] = target
        for temporary, target in targets.items():
            os.rename(temporary, target)
            renamed.append(target)
    except BaseException:
        for target in renamed:
            _remove(target)
        for backup, target in earlier.items():
            os.rename(backup, target)
        raise
    for backup in earlier:
        _remove(backup)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
