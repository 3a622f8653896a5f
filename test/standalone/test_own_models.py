"""Users' models: equal names in several modules, all forms of import, and roots other than functions and classes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from torchvision_layers._utils.importing import factory
from torchvision_layers.standalone import source, write

from ._runner import run
from ._support import ROOT, batch_of

PARTS = '''\
from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch.nn.functional as func
from torch import nn

from torchvision_layers import nn as layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Net

T = TypeVar("T", bound=nn.Module)
TABLE = {"a": 3}
TABLE["b"] = 5
TABLE.update(c=1)
LOW, HIGH = 1, 9; import math; OFFSET = math.floor(0.5)
UNUSED = {"never": 1}
UNUSED["either"] = 2


def check_int(value: Sequence[int]) -> int:
    """The package has a function of this name."""
    return sum(value)


def round(value: float) -> int:
    """The layers use the builtin of this name."""
    return int(value)


def clamp(value: int) -> int:
    match value:
        case int() as number if (limits := [last for bound in (LOW, HIGH) if (last := bound)]):
            return min(number, last, *limits[1:]) + OFFSET
        case other:
            return other


def marked(cls: type[T]) -> type[T]:
    cls.mark = "×"
    return cls


# This comment is directly above.
@marked
class ConvNormAct(layers.ConvNormAct):
    """It has the name of its base class."""

    def __init__(self, channels: int, net: Net | None = None) -> None:
        super().__init__(channels, channels, clamp(TABLE["a"]))


class Pool(nn.Module):
    def forward(self, x):
        Permute = layers.Permute  # hides the name that the layer has by default
        assert Permute.__name__ in f"{layers.Permute.__name__} × {layers.Permute.__name__}"
        return func.adaptive_avg_pool2d(Permute([0, 1, 3, 2])(x), round(1.7))
'''

MODEL = '''\
"""A user's model.

Its second paragraph, with a \\\\ in it.
"""

import functools

import torch
import torch.nn as nn
import torchvision_layers
from other import *
from torchvision_layers import nn as tnn
from torchvision_layers import quantized

from . import parts
from .parts import ConvNormAct as Own
from .parts import check_int

__all__ = ["Net", "make"]

SIZES = tuple(size for size in (8, 16) if size > 4)


class Block(nn.Module):
    def __init__(self, channels: "int") -> None:
        super().__init__()
        self.conv = tnn.ConvNormAct(channels, channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self._add_skip(self.bn(self.conv2(self.conv(x))), x))

    def folded(self):
        return torchvision_layers.deploy.fold(self)

    def _add_skip(self, branch, skip):
        return branch + skip


class QuantizableBlock(quantized.QuantizableLayer, Block):
    float_class = Block

    def _add_observed_ops(self):
        self.add = quantized.Addition()

    def _add_skip(self, branch, skip):
        return self.add(branch, skip)


class Net(nn.Module):
    def __init__(self, channels: "int" = SIZES[0]) -> None:
        super().__init__()
        self.stem = torchvision_layers.nn.ConvNormAct(3, check_int([channels - 1, 1]))
        self.own = Own(channels)
        self.block = Block(channels)
        self.drop = tnn.StochasticDepth(RATE, "row")
        self.pool = parts.Pool()
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: "torch.Tensor") -> "tuple[parts.T]":
        return self.fc(torch.flatten(self.pool(self.drop(self.block(self.own(self.stem(x))))), 1))


def make(channels: int = 8) -> Net:
    """Returns the model."""
    return Net(channels)


made = functools.partial(Net, 16)
globals()["at_runtime"] = lambda: Net()

if __name__ == "__main__":
    print(make())
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with two modules, and a module beside it."""
    folder = tmp_path / "own_models"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "inner" / "__init__.py").write_text("from .model import make as renamed\n")
    (folder / "inner" / "model.py").write_text(MODEL.replace("from other import *", "from ..other import *"))
    (folder / "inner" / "parts.py").write_text(PARTS)
    (folder / "other.py").write_text("RATE, CLASSES = 0.1, 4\n")
    return folder / "inner"


def check_alone(reference: str, folder: Path, **options: Any) -> str:
    """Writes a file and checks that its model equals the original; returns the text."""
    path = write(reference, folder / "alone.py", force=True, **options)
    batch = batch_of((2, 3, 9, 8))
    name = reference.rpartition(":")[2]
    jobs = {"": {"path": str(path), "name": name if name != "renamed" else "make", "batch": batch}}
    result = run(jobs)[""]
    with factory(reference) as function:
        torch.manual_seed(0)
        model = function()
        torch.manual_seed(1)
        assert torch.equal(model.eval()(batch), result["eval"])
        assert list(model.state_dict()) == list(result["state"])
        torch.manual_seed(1)
        assert torch.equal(model.train()(batch), result["train"])
    return path.read_text(encoding="utf-8")


def test_package_with_equal_names(package: Path, tmp_path: Path) -> None:
    text = check_alone(f"{package}/model.py:make", tmp_path)
    assert '"""make in one file that needs only torch.' in text
    assert "A user's model.\n\nIts second paragraph, with a \\ in it.\n" in text
    assert "from own_models/inner/model.py:make." in " ".join(text.split())
    for code in (
        "def check_int(value: Sequence[int])",
        "def check_int_of_checks(argument: str",
        "class ConvNormAct(ConvNormActOfConv):",
        'TABLE["b"] = 5',
        "TABLE.update(c=1)",
        "# This comment is directly above.\n@marked\nclass",
        "OFFSET = math.floor(0.5)\n",
        "Permute = PermuteOfPermute",
        "RATE, CLASSES = 0.1, 4",
        'T = TypeVar("T", bound=nn.Module)',
        '-> "tuple[T]"',
        "from torch import Tensor, nn\n",
        "from torch.nn import functional as func\n",
        "from __future__ import annotations\n",
        "SIZES = tuple(",
    ):
        assert code in text, code
    for code in ("UNUSED", "quantized.Q", "tnn", "layers.Conv", "deploy", "at_runtime", "print", "made ="):
        assert code not in text, code


def test_package_with_its_own_twins(package: Path, tmp_path: Path) -> None:
    path = write(f"{package}/model.py:make", tmp_path / "alone.py", quantizable=True)
    text = path.read_text(encoding="utf-8")
    assert "self.block = QuantizableBlock(channels)" in text
    assert "class ConvNormAct(QuantizableConvNormAct):" in text
    assert "float_class" not in text
    batch = batch_of((2, 3, 9, 8))
    job = {"path": str(path), "name": "make", "batch": batch, "batches": [batch]}
    results = run({"ptq": job, "qat": {**job, "is_qat": True}})
    for result in results.values():
        _, expected, fused, int8, kinds = result["int8"]
        torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5)
        assert float((int8 - expected).abs().max()) < 0.2 * float(expected.abs().max())
        assert "torch.ao.nn.intrinsic.quantized.modules.conv_relu.ConvReLU2d" in kinds
        assert "torch.ao.nn.quantized.modules.functional_modules.QFunctional" in kinds


@pytest.mark.parametrize("name", ["model.py:made", "__init__.py:renamed"])
def test_root_that_is_not_a_function_definition(name: str, package: Path, tmp_path: Path) -> None:
    """A partial, and a function that a module imports under another name."""
    check_alone(f"{package}/{name}", tmp_path)


def test_script_with_a_module_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("from torch import nn\n\n\ndef act():\n    return nn.ReLU6()\n")
    (tmp_path / "script.py").write_text(
        "import beside_it\nfrom torchvision_layers import nn as tnn\n\n\n"
        "def net():\n    return tnn.ConvNormAct(3, 8, activation_layer=beside_it.act)\n"
    )
    text = check_alone(f"{tmp_path}/script.py:net", tmp_path)
    assert "activation_layer=act)" in text
    sys.modules.pop("beside_it", None)


def test_all_models_in_one_file(tmp_path: Path, ruff: Any) -> None:
    """Five of them define a table of the same name."""
    at = ROOT / "references" / "classification" / "models" / "__init__.py"
    path = write(f"{at}:build_model", tmp_path / "all.py")
    text = path.read_text(encoding="utf-8")
    tables = [line.split(" = ")[0] for line in text.splitlines() if line.startswith("STAGES")]
    others = ["EFFICIENTNET", "MOBILENET", "MOBILENET_V1", "MOBILEONE"]
    assert sorted(tables) == ["STAGES", *(f"STAGES_OF_{name}" for name in others)]
    jobs = {
        name: {
            "path": str(path),
            "name": "build_model",
            "args": (name, 5, 0.25, 0.1),
            "batch": batch_of((2, 3, 33, 40)),
        }
        for name in ("efficientnet_b0", "mobilenet_v1", "mobilenet_v2_coord", "nf_resnet50")
    }
    results = run(jobs)
    with factory(f"{at}:build_model") as build:
        for name, job in jobs.items():
            torch.manual_seed(0)
            model = build(*job["args"]).eval()
            torch.manual_seed(1)
            assert torch.equal(model(job["batch"]), results[name]["eval"])
    settings = str(ROOT / "pyproject.toml")
    assert ruff("check", "--config", settings, cwd=tmp_path) == ""
    assert ruff("format", "--check", "--diff", "--config", settings, cwd=tmp_path) == ""


def test_classes_that_need_each_other() -> None:
    """``SEBlock`` and its lazy form do: the base class comes first."""
    text = source("torchvision_layers.experimental.nn:SEBlock")
    assert text.index("class SEBlock(") < text.index("class _LazySEBlock(SEBlock")
    compile(text, "se_block.py", "exec")


def test_modules_that_need_each_other(tmp_path: Path) -> None:
    """The file can be loaded only if the base class comes before the derived class, and both before the function."""
    folder = tmp_path / "mutual_models"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "a.py").write_text(
        "from torch import nn\n\n\nclass Base(nn.Module):\n    def forward(self, x):\n        return x + 1\n\n"
        "    def other(self):\n        return b.Derived()\n\n\ndef net():\n    return Base().other()\n\n\n"
        "from . import b\n"
    )
    (folder / "b.py").write_text("from . import a\n\n\nclass Derived(a.Base):\n    pass\n")
    text = check_alone(f"{folder}/a.py:net", tmp_path)
    assert text.index("class Base(") < text.index("class Derived(Base)") < text.index("def net(")
