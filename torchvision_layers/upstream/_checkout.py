"""A checkout of torchvision: what of it is read, and when it is left alone."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOCS", "DOOR", "TESTS", "Checkout", "open_checkout"]

#: The files of a checkout to which every new layer adds.
DOOR = "torchvision/ops/__init__.py"
DOCS = "docs/source/ops.rst"
TESTS = "test/test_ops.py"

_SHOWN = 5


@dataclass(frozen=True)
class Checkout:
    """A clean working tree of torchvision."""

    path: Path

    def text(self, file: str) -> str:
        """What a file holds; nothing where there is none."""
        path = self.path / file
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def models_with(self, name: str) -> list[str]:
        """Files of ``torchvision.models`` that define a class ``name``."""
        files = sorted((self.path / "torchvision" / "models").rglob("*.py"))
        return [
            file.relative_to(self.path).as_posix()
            for file in files
            if f"\nclass {name}(" in file.read_text(encoding="utf-8")
        ]


def open_checkout(path: str | Path) -> Checkout:
    """The checkout at ``path``, if its layout is known and nothing in it waits for a commit.

    Errors: ``ValueError`` for a folder that is no checkout of torchvision, has another layout than that of torchvision
    0.29, or holds changes, which are named.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"--checkout must be a folder with a checkout of torchvision, there is none at {folder}")
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()).resolve() != folder.resolve():
        raise ValueError(f"--checkout must be the top of a git repository, got {folder}")
    if not (folder / "torchvision").is_dir():
        raise ValueError(f"--checkout must be a checkout of torchvision, {folder} has no folder torchvision")
    for file in (DOOR, DOCS, TESTS, "torchvision/utils.py"):
        if not (folder / file).is_file():
            raise ValueError(f"--checkout must have the layout of torchvision 0.29, {folder} has no {file}")
    if "def _log_api_usage_once(" not in (folder / "torchvision/utils.py").read_text(encoding="utf-8"):
        raise ValueError(
            "--checkout must have the layout of torchvision 0.29, its torchvision/utils.py has no _log_api_usage_once"
        )
    changed = (_git(folder, "status", "--porcelain", "--untracked-files=all") or "").splitlines()
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        files = ", ".join(line[3:] for line in changed[:_SHOWN])
        raise ValueError(f"--checkout must be clean, commit or remove first: {files}{more}")
    return Checkout(folder)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or ``None`` where it finds no repository."""
    # Within a hook of git, variables lead to the repository of the hook.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise ValueError("git must be installed, for it tells whether the checkout is clean") from error
    return done.stdout if done.returncode == 0 else None
