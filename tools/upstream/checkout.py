"""A checkout of torchvision: its layout, its public operators, and whether it is clean."""

import ast
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["DOCS", "INIT", "TESTS", "Checkout", "open_checkout"]

INIT = "torchvision/ops/__init__.py"
DOCS = "docs/source/ops.rst"
TESTS = "test/test_ops.py"
_UTILS = "torchvision/utils.py"


@dataclass(frozen=True)
class Checkout:
    """A clean working tree of torchvision."""

    path: Path

    def read(self, file: str) -> str:
        return (self.path / file).read_text(encoding="utf-8")

    @cached_property
    def operators(self) -> dict[str, str]:
        """The module in ``torchvision.ops`` of each public operator."""
        imports = [node for node in ast.parse(self.read(INIT)).body if isinstance(node, ast.ImportFrom)]
        return {alias.name: node.module for node in imports if node.module for alias in node.names}

    def models_with(self, name: str) -> list[str]:
        """The files of ``torchvision.models`` that define a class ``name``."""
        files = [
            path.relative_to(self.path).as_posix() for path in sorted(self.path.glob("torchvision/models/**/*.py"))
        ]
        return [file for file in files if f"\nclass {name}(" in self.read(file)]


def open_checkout(path: str | Path) -> Checkout:
    """Opens a checkout of torchvision.

    Raises ``ValueError`` if ``path`` is not the top folder of a git repository, has another layout than torchvision
    0.29, or has uncommitted changes.
    """
    checkout = Checkout(Path(path).expanduser())
    for file in (INIT, DOCS, TESTS, _UTILS):
        if not (checkout.path / file).is_file():
            raise ValueError(f"the checkout must have the layout of torchvision 0.29, {path} has no {file}")
    if "def _log_api_usage_once(" not in checkout.read(_UTILS):
        raise ValueError(f"{_UTILS} must have the layout of torchvision 0.29, it has no _log_api_usage_once")
    if _git(checkout.path, "rev-parse", "--show-prefix") != "\n":
        raise ValueError(f"the checkout must be the top folder of a git repository, got {path}")
    if changes := _git(checkout.path, "status", "--porcelain", "--untracked-files=all"):
        files = ", ".join(line[3:] for line in changes.splitlines()[:5])
        raise ValueError(f"the checkout must be clean, commit or remove first: {files}")
    return checkout


def _git(folder: Path, *args: str) -> str:
    # A git hook sets variables that point at its own repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stdout
