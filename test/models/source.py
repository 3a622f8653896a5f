"""Drawn models as Python source that runs by itself, and models built from exactly that source."""

import hashlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

from .description import Model, ModuleClass
from .states import STATES

__all__ = ["load", "source"]

_IMPORTS = """import operator
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn
"""


def source(model: Model, header: str = "") -> str:
    """The text of a file that defines ``build()`` and ``inputs()``, without the imports that it does not need."""
    parts = [
        *_result_classes(model),
        *(_class_text(cls) for cls in model.classes),
        *(inspect.getsource(state) for state in STATES if state.__name__ in model.states),
        _build_text(model),
        _inputs_text(model),
    ]
    body = "\n\n\n".join(part.strip() for part in parts)
    lines = [line for line in _IMPORTS.splitlines() if not line or _is_used(line, body)]
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + "\n".join(lines).strip() + "\n\n\n" + body + "\n"


def load(text: str, folder: Path) -> ModuleType:
    """A module with the source ``text``, from a file in ``folder``, because tracing and inspection read files."""
    name = f"drawn_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return module


_RESULTS = {
    "Result": "@dataclass\nclass Result:\n    first: Tensor\n    second: Tensor\n",
    "Pair": "class Pair(NamedTuple):\n    first: Tensor\n    second: Tensor\n",
}


def _result_classes(model: Model) -> list[str]:
    return [text for name, text in _RESULTS.items() if model.classes[-1].output.startswith(f"{name}(")]


def _class_text(cls: ModuleClass) -> str:
    lines = [f"class {cls.name}(nn.Module):"]
    if cls.members:
        lines += ["    def __init__(self) -> None:", "        super().__init__()"]
        lines += [f"        {line}" for member in cls.members for line in member.splitlines()] + [""]
    lines += [f"    def forward({', '.join(['self', *cls.parameters])}):"]
    lines += [f"        {line}" for statement in cls.statements for line in statement.splitlines()]
    return "\n".join([*lines, f"        return {cls.output}", ""])


def _build_text(model: Model) -> str:
    lines = ["def build() -> nn.Module:", f"    torch.manual_seed({model.seed})"]
    lines += [f"    model = {model.classes[-1].name}()"]
    lines += [f"    {state}(model)" for state in model.states]
    return "\n".join([*lines, "    return model.eval()", ""])


def _inputs_text(model: Model) -> str:
    kind, (start, end) = ("dict[str, Tensor]", "{}") if model.has_keywords else ("tuple[Tensor, ...]", "()")
    lines = [f"SIZES = {model.sizes}", "", ""]
    lines += [f"def inputs(batch: int = 4, size: int = 0, seed: int = 0) -> {kind}:"]
    lines += ["    generator = torch.Generator().manual_seed(seed)", f"    return {start}"]
    for image in model.inputs:
        name = f'"{image.name}": ' if model.has_keywords else ""
        lines.append(f"        {name}torch.randn(batch, {image.channels}, *SIZES[size], generator=generator),")
    return "\n".join([*lines, f"    {end}"])


def _is_used(line: str, text: str) -> bool:
    """Whether ``text`` uses a name that an import statement binds."""
    names = line.rpartition("import ")[2].rpartition(" as ")[2].split(", ")
    return any(re.search(rf"\b{name.partition('.')[0]}\b", text) for name in names)
