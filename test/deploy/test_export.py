"""Every format: the contents of its files and the outputs that they compute."""

import json
import os
import random
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.deploy.formats import onnx as onnx_format
from torchvision_layers.deploy.formats.table import FORMATS

from ._support import CASES, CLASSES, FAST, SLOW, FunctionModule, example, float_model, int8_model

ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
#: Tolerance relative to the largest output for models this small. Int8 kernels differ in how they round ties.
BOUNDS = {
    "torchscript": 1e-6,
    "torchscript-int8": 0.0,
    "pt2": 1e-6,
    "pt2-int8": 1e-6,
    "onnx-qdq": 0.02,
    "aoti-int8": 0.02,
}
SHAPES = [(3, 3, 16, 16), (1, 3, 16, 16), (7, 3, 16, 16), (2, 3, 33, 24), (1, 3, 40, 17)]


@pytest.mark.parametrize("name", ALL)
def test_file_matches_model_at_all_sizes(name: str, case_file) -> None:
    model, loaded = case_file(name).model, deploy.load(case_file(name).path)
    for shape in SHAPES:
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
        output = loaded(x)
        assert not output.requires_grad
        assert float((output - expected).abs().max()) <= BOUNDS.get(name, 1e-5) * float(expected.abs().max())


@pytest.mark.parametrize("name", ALL)
def test_exported_describes_file(name: str, case_file) -> None:
    exported = case_file(name).exported
    assert exported.format == CASES[name].format
    assert exported.size == exported.path.stat().st_size
    assert 0 <= exported.difference <= BOUNDS.get(name, 1e-5)
    assert exported.shapes[0] == (3, 3, 16, 16)
    batches, sizes = {shape[0] for shape in exported.shapes}, {shape[2:] for shape in exported.shapes}
    assert {1, 4} <= batches
    assert any(height != width and height != 16 for height, width in sizes)
    assert os.listdir(exported.path.parent) == [exported.path.name]


@pytest.mark.parametrize("name", ALL)
def test_metadata(name: str, case_file) -> None:
    loaded, case = deploy.load(case_file(name).path), CASES[name]
    metadata = loaded.metadata
    assert loaded.format == metadata["format"] == case.format
    assert metadata["classes"] == CLASSES
    assert (metadata["mean"], metadata["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert metadata["torch"] == torch.__version__
    assert metadata["torchvision_layers"] == __import__("torchvision_layers").__version__
    assert metadata["input_shape"] == [None, 3, None, None]
    assert metadata["about"] == {"trained on": "noise", "epochs": 3, "log": [1.5, None, "ä\n\"'"]}
    if case.engine is None:
        assert metadata["quantization"] is None
        return
    quantization = metadata["quantization"]
    assert (quantization["engine"], quantization["backend"]) == (case.engine, "x86")
    rows = quantized.report(case_file(name).model).rows
    assert [row["path"] for row in quantization["report"]] == [row.path for row in rows]
    assert quantization["report"][0]["runs_in"] == "int8"


@pytest.mark.parametrize("name", ["pt2", "pt2-int8", "onnx", "onnx-qdq"])
def test_file_contains_no_local_paths_and_no_images(name: str, case_file) -> None:
    content = case_file(name).path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content
    assert example().numpy().tobytes()[:64] not in content


def test_onnx_residual_additions_are_int8(case_file) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(case_file("onnx-qdq").path).graph
    producers = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    additions = [node for node in graph.node if node.op_type == "Add"]
    assert len(additions) == 2
    for addition in additions:
        kinds = [producers[name].op_type for name in addition.input]
        assert "DequantizeLinear" in kinds
        assert set(kinds) <= {"DequantizeLinear", "Conv"}  # one kernel runs a convolution and the sum after it
        (consumer,) = consumers[addition.output[0]]
        if consumer.op_type == "Relu":
            (consumer,) = consumers[consumer.output[0]]
        assert consumer.op_type == "QuantizeLinear"
    weights = {node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm")}
    dtypes = {initializer.name: initializer.data_type for initializer in graph.initializer}
    for name in weights:
        assert producers[name].op_type in ("DequantizeLinear", "Transpose")
    assert sum(kind == onnx.TensorProto.INT8 for kind in dtypes.values()) >= len(weights)


def test_onnx_contains_no_traces_of_exporter(case_file) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(case_file("onnx-qdq").path)
    assert {prop.key for prop in model.metadata_props} == {"metadata.json", "torchvision_layers.sha256"}
    assert not any(len(part.metadata_props) for part in (*model.graph.node, *model.graph.value_info))


def test_onnx_axes_have_names(case_file) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(case_file("onnx").path).graph
    (input,), (output,) = graph.input, graph.output
    assert (input.name, output.name) == ("input", "output")
    assert [dim.dim_param or dim.dim_value for dim in input.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    assert [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim] == ["batch", 5]


def test_onnx_makes_weights_unsigned_without_vnni(case_file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_format, "has_vnni", lambda: False)
    model, loaded = case_file("onnx-qdq").model, deploy.load(case_file("onnx-qdq").path)
    x = example()
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0.02 * float(model(x).abs().max()))


@pytest.mark.parametrize("name", ["pt2", pytest.param("aoti-int8", marks=pytest.mark.slow), "onnx", "torchscript-int8"])
def test_memory_formats_and_empty_batches(name: str, case_file) -> None:
    loaded, x = deploy.load(case_file(name).path), example()
    torch.testing.assert_close(loaded(x.to(memory_format=torch.channels_last)), loaded(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded(x.transpose(2, 3)), loaded(x.transpose(2, 3).contiguous()), rtol=0, atol=1e-6)
    assert loaded(x.clone().requires_grad_()).requires_grad is False
    assert loaded(x[:0]).shape == (0, 5)


def test_nested_int8_model_is_recognized(tmp_path: Path) -> None:
    model = nn.Sequential(int8_model("eager"), nn.Softmax(1)).eval()
    exported = deploy.export(model, example(), tmp_path / "model.pt")
    assert exported.difference == 0
    assert deploy.load(exported.path).metadata["quantization"]["engine"] == "eager"


@pytest.mark.parametrize("format", ["torchscript", "pt2", "onnx"])
def test_fixed_image_size(format: str, tmp_path: Path) -> None:
    model = nn.Sequential(tnn.ConvNormAct(3, 4), nn.Flatten(), nn.Linear(4 * 256, 2)).eval()
    exported = deploy.export(model, example(), tmp_path / f"model{FORMATS[format].suffix}", format=format)
    assert {shape[1:] for shape in exported.shapes} == {(3, 16, 16)}
    loaded = deploy.load(exported.path)
    assert loaded.metadata["input_shape"] == [None, 3, 16, 16]
    assert loaded(torch.randn(9, 3, 16, 16)).shape == (9, 2)
    with pytest.raises(ValueError, match="size 16 in dimension 3, got shape"):
        loaded(torch.randn(2, 3, 16, 17))


@pytest.mark.parametrize("format", ["torchscript", "pt2", "onnx"])
@pytest.mark.parametrize(
    ("model", "shape", "input_shape"),
    [
        (tnn.LinearDropoutAct(6, 4), (5, 6), [None, 6]),
        (tnn.Conv1dNormAct(3, 4), (2, 3, 11), [None, 3, None]),
        (tnn.Conv3dNormAct(2, 3), (2, 2, 5, 6, 7), [None, 2, None, None, None]),
        (tnn.ConvNormAct(3, 4), (1, 3, 9, 9), [None, 3, None, None]),
    ],
)
def test_input_dimensions(format: str, model, shape: tuple, input_shape: list, tmp_path: Path) -> None:
    exported = deploy.export(
        model.eval(), torch.randn(shape), tmp_path / f"model{FORMATS[format].suffix}", format=format
    )
    assert deploy.load(exported.path).metadata["input_shape"] == input_shape
    assert exported.difference < 1e-5


def test_sizes_with_stride_are_found(tmp_path: Path) -> None:
    """A U-Net, for example, accepts only multiples of eight."""

    def forward(self, x):
        assert x.shape[2] % 8 == 0
        assert x.shape[3] % 8 == 0
        return self.conv(x)

    exported = deploy.export(
        FunctionModule(forward, conv=tnn.ConvNormAct(3, 4)), example(), tmp_path / "m.pt2", format="pt2"
    )
    assert (2, 3, 48, 80) in exported.shapes


def test_program_keeps_guards_on_sizes(tmp_path: Path) -> None:
    """The program raises an error for sizes at which the forward would take another branch than the traced one."""

    def forward(self, x):
        y = self.conv(x)
        return y if (x.shape[2] + x.shape[3]) % 2 == 0 else 2 * y

    model = FunctionModule(forward, conv=tnn.ConvNormAct(3, 4))
    exported = deploy.export(model, example(), tmp_path / "m.pt2", format="pt2")
    with pytest.raises(ValueError, match="input must have sizes that the program supports: Guard failed"):
        deploy.load(exported.path)(torch.randn(1, 3, 20, 21))


def _name_of(value: Any) -> str:
    """The name of a function or a pass, because torch may copy the object itself."""
    return getattr(value, "__qualname__", type(value).__qualname__)


def _state() -> SimpleNamespace:
    from torch._inductor import config

    return SimpleNamespace(
        engine=torch.backends.quantized.engine,
        grad=torch.is_grad_enabled(),
        dtype=torch.get_default_dtype(),
        filters=list(warnings.filters),
        random=(random.getstate(), str(np.random.get_state())),
        torch_random=torch.get_rng_state().tolist(),
        inductor=json.dumps(config.save_config_portable(), default=_name_of, sort_keys=True),
        environment=dict(os.environ),
        threads=torch.get_num_threads(),
    )


@pytest.mark.parametrize(
    "name", ["torchscript-int8", "pt2-int8", "onnx", pytest.param("aoti-int8", marks=pytest.mark.slow)]
)
def test_global_state_and_model_do_not_change(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = float_model() if case.engine is None else int8_model(case.engine)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"  # not the backend of the model
    try:
        before, output, modules = _state(), model(example()), [type(module) for module in model.modules()]
        exported = deploy.export(model, example(), tmp_path / f"model{case.suffix}", format=case.format)
        deploy.load(exported.path)(example())
        assert vars(_state()) == vars(before)
    finally:
        torch.backends.quantized.engine = engine
    assert torch.equal(model(example()), output)
    assert [type(module) for module in model.modules()] == modules
    assert not model.training


def test_int8_torchscript_runs_on_its_own_backend(case_file, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are packed for the current backend on loading, and some kernels check it when they run."""
    engines = []

    def load(file, map_location):
        engines.append(torch.backends.quantized.engine)
        return lambda x: engines.append(torch.backends.quantized.engine) or x

    monkeypatch.setattr(torch.jit, "load", load)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    try:
        deploy.load(case_file("torchscript-int8").path)(example())
        assert torch.backends.quantized.engine == "onednn"
    finally:
        torch.backends.quantized.engine = before
    assert engines == ["x86", "x86"]


def test_functions_of_torchvision_are_scripted(tmp_path: Path) -> None:
    model = tnn.BasicBlock(3, 3, stochastic_depth=0.5).eval()
    assert deploy.export(model, example(), tmp_path / "model.pt", format="torchscript").difference == 0


@pytest.mark.slow
def test_compiled_int8_uses_int8_kernels(case_file) -> None:
    content = case_file("aoti-int8").path.read_bytes()
    for kernel in (b"aoti_torch_cpu__qconv_pointwise", b"aoti_torch_cpu__qlinear_pointwise"):
        assert kernel in content


@pytest.mark.parametrize("format", ["pt2", "onnx", pytest.param("aoti", marks=pytest.mark.slow)])
def test_features_of_one_pixel_do_not_fix_sizes(format: str, tmp_path: Path) -> None:
    """torch treats sizes of one as constants, inside a model too."""
    stages = [tnn.BasicBlock(channels, 2 * channels, stride=2) for channels in (3, 6, 12)]
    model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images, path = torch.randn(2, 3, 8, 8), tmp_path / f"model{FORMATS[format].suffix}"
    deploy.export(model, images, path, format=format)
    loaded = deploy.load(path)
    for shape in ((2, 3, 8, 8), (1, 3, 8, 8), (3, 3, 5, 7), (2, 3, 40, 64)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


def test_batch_size_one_when_layout_depends_on_batch(tmp_path: Path) -> None:
    """For a convolution after a norm in channels_last, torch checks whether the batch size is one."""
    model = nn.Sequential(tnn.LayerNorm2d(3), nn.Conv2d(3, 4, 3), tnn.ConvNeXtBlock(4)).eval()
    for format in ("pt2", "onnx"):
        deploy.export(model, torch.randn(2, 3, 16, 16), tmp_path / "model", format=format)
    graph = quantized.quantize(model, [torch.randn(2, 3, 16, 16)], engine="pt2e")
    assert graph(torch.randn(1, 3, 20, 18)).shape == (1, 4, 18, 16)


def test_model_that_amplifies_rounding(tmp_path: Path) -> None:
    """The file may differ by what the model itself loses to rounding, here most of its digits."""

    class Cancels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return (1e4 + y.mean((2, 3))) - (1e4 + y.mean((2, 3)).tanh())

    torch.manual_seed(0)
    model, x = Cancels().eval(), torch.randn(2, 3, 9, 8)
    deploy.export(model, x, tmp_path / "model.onnx", format="onnx")
    with torch.no_grad():
        exact = model.double()(x.double())
    error = float((deploy.load(tmp_path / "model.onnx")(x) - exact).abs().max())
    assert 0 < error < 4e-3  # two roundings of ten thousand
