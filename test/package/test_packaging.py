"""The package is built, installed elsewhere and imported outside the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..interpreter import Interpreter

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# A source distribution is built from the checkout, and its installation builds the same wheel as that of a checkout.
@pytest.mark.parametrize("kind", [pytest.param("checkout", marks=pytest.mark.slow), "source distribution"])
def test_the_package_installs_and_imports_outside_the_checkout(
    tmp_path: Path, kind: str, interpreter: Interpreter
) -> None:
    source = tmp_path / "a checkout" / "source"
    names = ("setup.py", "pyproject.toml", "version.txt", "MANIFEST.in", "README.md", "LICENSE", "torchvision_layers")
    source.mkdir(parents=True)
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    if kind == "source distribution":
        build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
        source = source / "dist" / run(sys.executable, "-c", build, cwd=source).splitlines()[-1]
    target, pip = tmp_path / "installed", (sys.executable, "-m", "pip")
    run(*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target), str(source), cwd=tmp_path)
    assert (target / "torchvision_layers" / "py.typed").exists()
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import torch, torchvision_layers; from torchvision_layers import nn as tnn, quantized\n"
        "assert torchvision_layers.__file__.startswith(sys.path[0]), torchvision_layers.__file__\n"
        "print(torchvision_layers.__version__)\n"
        "print(tnn.ConvNormAct(3, 10, activation_layer=torch.nn.SiLU)(torch.rand(1, 3, 32, 32)).shape)\n"
    )
    result = interpreter.run(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    version, shape = result.stdout.splitlines()
    assert version == (ROOT / "version.txt").read_text().strip()
    assert shape == "torch.Size([1, 10, 32, 32])"
