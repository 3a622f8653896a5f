"""The examples in docstrings and in the README run and print the output they show."""

import doctest
import importlib
import pkgutil
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import torchvision_layers
from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

MODULES = [info.name for info in pkgutil.walk_packages(torchvision_layers.__path__, "torchvision_layers.")]
README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    names = {
        "torch": torch,
        "nn": nn,
        "tnn": tnn,
        "enn": enn,
        "deploy": deploy,
        "quantized": quantized,
        "partial": partial,
        **{n: getattr(quantized, n) for n in quantized.__all__},
    }
    failed, _ = doctest.testmod(importlib.import_module(name), extraglobs=names)
    assert failed == 0


def test_every_layer_has_an_example() -> None:
    staged = [
        layer for name in enn.__all__ if (layer := getattr(enn, name)).__module__.startswith("torchvision_layers")
    ]
    assert all(">>>" in layer.__doc__ for layer in [*staged, *(getattr(tnn, name) for name in tnn.__all__)])


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the examples may write files
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
