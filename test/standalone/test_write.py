"""Files of all models and stable layers run without the package, equal it to the bit, and pass ruff."""

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchvision_layers
from torchvision_layers import __version__, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.standalone import source

from ..conformance.specs import SPECS
from ._support import (
    LAYERS,
    LAYERS_WITH_TWINS,
    MODELS,
    MODELS_AT,
    ROOT,
    SLOW_MODELS,
    WITHOUT_TWINS,
    batch_of,
    images_of,
    samples_of,
    size_of,
)

PACKAGE = Path(torchvision_layers.__file__).parent


@pytest.fixture(scope="module")
def models() -> ModuleType:
    """The package with the reference models."""
    sys.path.insert(0, str(MODELS_AT.parent))
    try:
        return importlib.import_module("models")
    finally:
        sys.path.remove(str(MODELS_AT.parent))


def test_every_model_has_a_file(models: ModuleType) -> None:
    assert set(MODELS) == set(models.MODELS)


def as_cases(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_MODELS else []) for name in names]


CASES = [(name, id) for name in LAYERS for id in samples_of(name)]
TWINS = [case for case in CASES if case[0] in LAYERS_WITH_TWINS]


def check_same(result: dict[str, Any], make: Callable[[], nn.Module], batch: Tensor) -> None:
    torch.manual_seed(0)
    model = make()
    outputs = []
    for training in (False, True):
        torch.manual_seed(1)
        outputs.append(model.train(training)(batch).detach().clone())
    state = model.state_dict()
    assert list(result["state"]) == list(state)
    for key, value in state.items():
        assert torch.equal(result["state"][key], value), key
    for name, output in zip(("eval", "train"), outputs, strict=True):
        assert torch.equal(result[name], output), name


@pytest.mark.parametrize("name", as_cases(MODELS))
def test_model_is_equal_to_the_bit(name: str, alone: dict[str, Any], models: ModuleType) -> None:
    """This includes the initial parameters, and the random numbers in training."""
    check_same(alone[name], lambda: models.MODELS[name](**size_of(name)), images_of(name))


@pytest.mark.parametrize(("name", "id"), CASES, ids=map(" ".join, CASES))
def test_layer_is_equal_to_the_bit(name: str, id: str, alone: dict[str, Any]) -> None:
    sample = samples_of(name)[id]
    check_same(alone[f"{name} {id}"], lambda: getattr(tnn, name)(**sample.kwargs), batch_of(sample.shape))


def test_every_layer_has_a_sample() -> None:
    assert {name for name, _ in CASES} == set(LAYERS)


def check_twin(result: dict[str, Any], make: Callable[[], nn.Module], batch: Tensor) -> None:
    """The twin in a file equals that of the package, before and after fusion, and is close to it in int8."""
    check_same(result, make, batch)
    keys, expected, fused, int8, kinds = result["int8"]
    assert keys == list(result["state"])
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5)
    noise = float((int8 - expected).square().mean())
    assert noise <= 10**-1.5 * float(expected.square().mean())
    assert not {"torch.nn.modules.conv.Conv2d", "torch.nn.modules.batchnorm.BatchNorm2d"} & set(kinds)


@pytest.mark.parametrize("name", as_cases(name for name in MODELS if name not in WITHOUT_TWINS))
def test_quantizable_model(name: str, alone: dict[str, Any], models: ModuleType) -> None:
    def make() -> nn.Module:
        model = quantized.quantizable(models.MODELS[name](**size_of(name))).model
        if "lite" in name:  # the models initialize each nn.Conv2d: in a file, a twin and the convolution inside it
            state = alone[f"{name} quantizable"]["state"]
            parameters = {key: state[key] for key in state if key.endswith(("weight", "bias"))}
            model.load_state_dict(parameters, strict=False)
        return model

    check_twin(alone[f"{name} quantizable"], make, images_of(name))
    kinds = alone[f"{name} quantizable"]["int8"][4]
    assert any("quantized" in kind and "Conv" in kind for kind in kinds)
    if name != "densenet121":  # its norms are before the convolutions
        assert not [kind for kind in kinds if "batchnorm" in kind], "all batch norms are fused"
    if "resnet" in name:
        assert "torch.nn.modules.activation.ReLU" not in kinds, "ReLUs after additions are fused too"


@pytest.mark.parametrize(("name", "id"), TWINS, ids=map(" ".join, TWINS))
def test_quantizable_layer(name: str, id: str, alone: dict[str, Any]) -> None:
    sample = samples_of(name)[id]
    twin = LAYERS_WITH_TWINS[name].twin
    assert twin is not None
    check_twin(alone[f"{name} {id} quantizable"], lambda: twin(**sample.kwargs), batch_of(sample.shape))


def test_ruff_passes(folder: Path, ruff: Any) -> None:
    settings = str(ROOT / "pyproject.toml")
    assert ruff("check", "--config", settings, cwd=folder) == ""
    assert ruff("check", "--isolated", cwd=folder) == ""
    assert ruff("format", "--check", "--diff", "--config", settings, cwd=folder) == ""


def test_ruff_fails_on_bad_code(tmp_path: Path, ruff: Any) -> None:
    (tmp_path / "bad.py").write_text("import os\nx = [1,\n 2]\n")
    assert "F401" in ruff("check", "--isolated", cwd=tmp_path)
    assert "[1, 2]" in ruff("format", "--check", "--diff", cwd=tmp_path)


def test_imports_are_of_torch_and_the_standard_library(folder: Path) -> None:
    for path in folder.glob("*.py"):
        modules: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                modules.add(str(node.module))
        packages = {name.split(".")[0] for name in modules}
        assert packages - {*sys.stdlib_module_names} == {"torch"}, path.name


def test_header(folder: Path) -> None:
    text = (folder / "mobilenet_v3_small.py").read_text(encoding="utf-8")
    head = text.split('"""')[1]
    copyright = next(line for line in (ROOT / "LICENSE").read_text().splitlines() if line.startswith("Copyright"))
    assert f"License: BSD-3-Clause. {copyright}." in head
    origin = f"Written by torchvision_layers {__version__} from models/mobilenet_v3.py:mobilenet_v3_small."
    assert origin in " ".join(head.split()), "the path is not absolute"
    assert "`Searching for MobileNetV3 <https://arxiv.org/abs/1905.02244>`_, tables 1 and 2." in head
    assert "load_state_dict" in head
    assert text.rstrip().endswith("return MobileNetV3(SMALL, 1024, num_classes, width_mult, depth_mult)")


def test_a_file_contains_only_what_the_model_uses(folder: Path) -> None:
    text = (folder / "mobilenet_v3_small.py").read_text(encoding="utf-8")
    for code in ("class InvertedResidual(", "class SqueezeExcitation(", "SMALL: ", "RE, HS = nn.ReLU, nn.Hardswish"):
        assert code in text, code
    for code in ("LARGE: ", "mobilenet_v3_large", "MBConv", "class Conv1dNormAct", "tnn.", "folded"):
        assert code not in text, code
    assert "    def _load_from_state_dict(" in text, "it overrides a method that torch calls"
    assert 'torch.fx.wrap("stochastic_depth")' in text
    layer = (folder / "SqueezeExcitation.py").read_text(encoding="utf-8")
    assert "def conv(" not in layer, "nothing calls this method of a helper"
    assert ">>> SqueezeExcitation(16, 4)(torch.rand(2, 16, 8, 8)).shape" in layer
    comments = re.findall(" # .+", (PACKAGE / "layers" / "squeeze_excitation.py").read_text(encoding="utf-8"))
    assert comments
    assert all(comment in layer for comment in comments)
    assert "tnn.WSConv2d" not in (folder / "resnet50_gn_ws.py").read_text(encoding="utf-8")


def test_the_text_is_deterministic(folder: Path) -> None:
    assert source("torchvision_layers.nn:MBConv") == (folder / "MBConv.py").read_text(encoding="utf-8")


def test_every_twin_is_tested() -> None:
    assert {spec.name for spec in SPECS if spec.twin is not None and spec.status == "stable"} == {*LAYERS_WITH_TWINS}
