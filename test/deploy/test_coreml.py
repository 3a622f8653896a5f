"""Packages for Core ML: their structure, because only Apple's systems run them."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers.deploy.formats import coreml

from ._support import CLASSES, example, float_model

INSTALLED = find_spec("coremltools") is not None
needs_coreml = pytest.mark.skipif(not INSTALLED, reason="an extra")


@pytest.mark.skipif(INSTALLED, reason="for other environments")
def test_missing_package(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r'needs coremltools: pip install "torchvision_layers\[coreml\]"'):
        deploy.export(float_model(), example(), tmp_path / "model.mlpackage", format="coreml")


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.mlpackage").mkdir()
    with pytest.raises((ValueError, ImportError), match="package for Core ML, or not exist yet|needs coremltools"):
        deploy.export(float_model(), example(), tmp_path / "model.mlpackage", format="coreml")
    assert os.listdir(tmp_path) == ["model.mlpackage"]


@needs_coreml
@pytest.mark.parametrize(
    ("format", "is_int8", "type"),
    [("coreml", False, "FLOAT16"), ("coreml-float32", False, "FLOAT32"), ("coreml", True, "INT8")],
)
def test_structure(format: str, is_int8: bool, type: str, tmp_path: Path) -> None:
    import coremltools

    model: nn.Module = float_model()
    if is_int8:
        model = quantized.quantize(model, [example()], engine="pt2e", backend="x86")
    path = tmp_path / "model.mlpackage"
    for _ in range(2):  # replaces the first
        exported = deploy.export(model, example(), path, format=format, classes=CLASSES)
    assert exported.difference != exported.difference
    assert os.listdir(tmp_path) == ["model.mlpackage"]
    assert exported.size == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert [value.name for value in spec.description.input] == ["input"]
    assert [value.name for value in spec.description.output] == ["output"]
    names = str(spec.mlProgram)
    assert (f"dataType: {type}" in names) is True
    with pytest.raises(ValueError, match="is for Core ML, which runs on Apple's systems"):
        deploy.load(path)


@needs_coreml
def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
            return {"mask": torch.relu(image) + depth, "near": depth * 2}

    inputs = {"depth": example()[:, :1], "image": example()}
    deploy.export(Model().eval(), inputs, tmp_path / "m.mlpackage", format="coreml")


@needs_coreml
def test_other_structure_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml, "_count", lambda program, names: 1)
    with pytest.raises(RuntimeError, match="the package has other convolutions than the model: 6 in place of 1"):
        deploy.export(float_model(), example(), tmp_path / "m.mlpackage", format="coreml")
    assert os.listdir(tmp_path) == []
