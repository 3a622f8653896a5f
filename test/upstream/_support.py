"""A checkout of torchvision, made from the installed package."""

import subprocess
from pathlib import Path

import torchvision

__all__ = ["commit", "git", "make_checkout", "status"]

PACKAGE = Path(torchvision.__file__).parent

DOCS = """\
.. _ops:

Operators
=========

.. currentmodule:: torchvision.ops

Losses
------

.. autosummary::
    :toctree: generated/
    :template: function.rst

    sigmoid_focal_loss


Layers
------

TorchVision provides commonly used building blocks as layers:

.. autosummary::
    :toctree: generated/
    :template: class.rst

    Conv2dNormActivation
    DeformConv2d
    FrozenBatchNorm2d
    MLP
    Permute
    SqueezeExcitation
    StochasticDepth

.. autosummary::
    :toctree: generated/
    :template: function.rst

    stochastic_depth
"""

TESTS = """\
import math
import os
from functools import lru_cache

import pytest
import torch
import torch.fx
from common_utils import assert_equal
from torch import nn, Tensor
from torchvision import ops


class TestCheckout:
    def test_is_imported(self):
        assert os.path.dirname(ops.__file__) == os.environ["CHECKOUT_OPS"]
        assert_equal(ops.Permute([1, 0])(torch.ones(2, 3)), torch.ones(3, 2))


if __name__ == "__main__":
    pytest.main([__file__])
"""

COMMON = """\
import torch


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
"""


def git(checkout: Path, *args: str) -> str:
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.invalid", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(checkout), *identity, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def status(checkout: Path) -> list[str]:
    """The files that a commit would change."""
    return [line[3:] for line in git(checkout, "status", "--porcelain", "--untracked-files=all").splitlines()]


def commit(checkout: Path) -> None:
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "change")


def make_checkout(path: Path) -> Path:
    """Makes a checkout whose operators are copies of the installed ones and whose other code is linked to them."""
    ops = path / "torchvision" / "ops"
    ops.mkdir(parents=True)
    for entry in PACKAGE.iterdir():
        if entry.name not in ("ops", "__pycache__"):
            (path / "torchvision" / entry.name).symlink_to(entry)
    for file in (PACKAGE / "ops").glob("*.py"):
        (ops / file.name).write_bytes(file.read_bytes())
    files = {"docs/source/ops.rst": DOCS, "test/test_ops.py": TESTS, "test/common_utils.py": COMMON}
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")
    (path / ".gitignore").write_text("__pycache__/\n.pytest_cache/\n")
    git(path, "init", "--quiet")
    commit(path)
    return path
