"""Every format: what is in the file, what it computes, and what it cannot hold."""

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
from torchvision_layers.deploy import _onnx

from ._support import CASES, CLASSES, FAST, Reads, example, float_model, int8_model

ALL = [*FAST, pytest.param("aoti", marks=pytest.mark.slow)]
#: Largest difference, relative to the largest output, on models as small as these. Kernels of int8 round ties as they
#: like.
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
def test_the_file_computes_what_the_model_does_for_all_sizes(name: str, written) -> None:
    model, loaded = written(name).model, deploy.load(written(name).path)
    for shape in SHAPES:
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
        got = loaded(x)
        assert not got.requires_grad
        assert float((got - expected).abs().max()) <= BOUNDS.get(name, 1e-5) * float(expected.abs().max())


@pytest.mark.parametrize("name", ALL)
def test_what_was_written_is_told(name: str, written) -> None:
    exported = written(name).exported
    assert exported.format == CASES[name].format
    assert exported.size == exported.path.stat().st_size
    assert 0 <= exported.difference <= BOUNDS.get(name, 1e-5)
    assert exported.shapes[0] == (3, 3, 16, 16)
    batches, sizes = {shape[0] for shape in exported.shapes}, {shape[2:] for shape in exported.shapes}
    assert {1, 4} <= batches
    assert any(height != width and height != 16 for height, width in sizes)
    assert os.listdir(exported.path.parent) == [exported.path.name]


@pytest.mark.parametrize("name", ALL)
def test_metadata(name: str, written) -> None:
    loaded, case = deploy.load(written(name).path), CASES[name]
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
    rows = quantized.report(written(name).model).rows
    assert [row["path"] for row in quantization["report"]] == [row.path for row in rows]
    assert quantization["report"][0]["runs_in"] == "int8"


@pytest.mark.parametrize("name", ["pt2", "pt2-int8", "onnx", "onnx-qdq"])
def test_no_paths_of_this_machine_and_no_images_are_in_the_file(name: str, written) -> None:
    content = written(name).path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content
    assert example().numpy().tobytes()[:64] not in content


def test_residual_additions_are_int8_in_onnx(written) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(written("onnx-qdq").path).graph
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    additions = [node for node in graph.node if node.op_type == "Add"]
    assert len(additions) == 2
    for addition in additions:
        kinds = [makers[name].op_type for name in addition.input]
        assert "DequantizeLinear" in kinds
        assert set(kinds) <= {"DequantizeLinear", "Conv"}  # a convolution and the sum after it are one kernel
        (reader,) = readers[addition.output[0]]
        if reader.op_type == "Relu":
            (reader,) = readers[reader.output[0]]
        assert reader.op_type == "QuantizeLinear"
    weights = {node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm")}
    stored = {initializer.name: initializer.data_type for initializer in graph.initializer}
    for name in weights:
        assert makers[name].op_type in ("DequantizeLinear", "Transpose")
    assert sum(kind == onnx.TensorProto.INT8 for kind in stored.values()) >= len(weights)


def test_onnx_holds_no_notes_of_the_exporter(written) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(written("onnx-qdq").path)
    assert {prop.key for prop in model.metadata_props} == {"metadata.json", "torchvision_layers.sha256"}
    assert not any(len(held.metadata_props) for held in (*model.graph.node, *model.graph.value_info))


def test_axes_of_onnx_have_names(written) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(written("onnx").path).graph
    (input,), (output,) = graph.input, graph.output
    assert (input.name, output.name) == ("input", "output")
    assert [dim.dim_param or dim.dim_value for dim in input.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    assert [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim] == ["batch", 5]


def test_onnx_runs_with_unsigned_weights_on_processors_without_vnni(written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onnx, "has_vnni", lambda: False)
    model, loaded = written("onnx-qdq").model, deploy.load(written("onnx-qdq").path)
    x = example()
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0.02 * float(model(x).abs().max()))


@pytest.mark.parametrize("name", ["pt2", "aoti-int8", "onnx", "torchscript-int8"])
def test_every_memory_format_and_empty_batches_run(name: str, written) -> None:
    loaded, x = deploy.load(written(name).path), example()
    torch.testing.assert_close(loaded(x.to(memory_format=torch.channels_last)), loaded(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded(x.transpose(2, 3)), loaded(x.transpose(2, 3).contiguous()), rtol=0, atol=1e-6)
    assert loaded(x.clone().requires_grad_()).requires_grad is False
    assert loaded(x[:0]).shape == (0, 5)


def test_an_int8_model_within_another_is_int8(tmp_path: Path) -> None:
    model = nn.Sequential(int8_model("eager"), nn.Softmax(1)).eval()
    exported = deploy.export(model, example(), tmp_path / "model.pt")
    assert exported.difference == 0
    assert deploy.load(exported.path).metadata["quantization"]["engine"] == "eager"


@pytest.mark.parametrize("format", ["torchscript", "pt2", "onnx"])
def test_a_model_of_one_image_size_is_a_file_of_one(format: str, tmp_path: Path) -> None:
    model = nn.Sequential(tnn.ConvNormAct(3, 4), nn.Flatten(), nn.Linear(4 * 256, 2)).eval()
    exported = deploy.export(model, example(), tmp_path / "model.pt2", format=format)
    assert {shape[1:] for shape in exported.shapes} == {(3, 16, 16)}
    loaded = deploy.load(exported.path)
    assert loaded.metadata["input_shape"] == [None, 3, 16, 16]
    assert loaded(torch.randn(9, 3, 16, 16)).shape == (9, 2)
    with pytest.raises(ValueError, match="size 16 in dimension 3, got 17"):
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
def test_inputs_of_other_dimensions(format: str, model, shape: tuple, input_shape: list, tmp_path: Path) -> None:
    exported = deploy.export(model.eval(), torch.randn(shape), tmp_path / "model.pt2", format=format)
    assert deploy.load(exported.path).metadata["input_shape"] == input_shape
    assert exported.difference < 1e-5


def test_sizes_in_steps_of_a_stride_are_found(tmp_path: Path) -> None:
    """A U-Net, say, takes multiples of eight only."""

    def forward(self, x):
        assert x.shape[2] % 8 == 0
        assert x.shape[3] % 8 == 0
        return self.conv(x)

    exported = deploy.export(Reads(forward, conv=tnn.ConvNormAct(3, 4)), example(), tmp_path / "m.pt2", format="pt2")
    assert (2, 3, 48, 80) in exported.shapes


def test_a_program_keeps_the_guards_on_sizes(tmp_path: Path) -> None:
    """Where the forward would take another way than the one that was traced, there is an error and no answer."""

    def forward(self, x):
        y = self.conv(x)
        return y if (x.shape[2] + x.shape[3]) % 2 == 0 else 2 * y

    model = Reads(forward, conv=tnn.ConvNormAct(3, 4))
    exported = deploy.export(model, example(), tmp_path / "m.pt2", format="pt2")
    with pytest.raises(Exception, match="Guard failed"):
        deploy.load(exported.path)(torch.randn(1, 3, 20, 21))


def _name_of(value: Any) -> str:
    """Of a function or a pass: torch may copy it."""
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
def test_nothing_global_and_nothing_of_the_model_changes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = float_model() if case.engine is None else int8_model(case.engine)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"  # another than the model's
    try:
        before, output, modules = _state(), model(example()), [type(module) for module in model.modules()]
        exported = deploy.export(model, example(), tmp_path / "model.pt2", format=case.format)
        deploy.load(exported.path)(example())
        assert vars(_state()) == vars(before)
    finally:
        torch.backends.quantized.engine = engine
    assert torch.equal(model(example()), output)
    assert [type(module) for module in model.modules()] == modules
    assert not model.training


def test_int8_torchscript_runs_on_its_own_engine(written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are packed for the engine in force when a file is loaded, and some kernels ask for it when they run."""
    seen = []

    def load(file, map_location):
        seen.append(torch.backends.quantized.engine)
        return lambda x: seen.append(torch.backends.quantized.engine) or x

    monkeypatch.setattr(torch.jit, "load", load)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    try:
        deploy.load(written("torchscript-int8").path)(example())
        assert torch.backends.quantized.engine == "onednn"
    finally:
        torch.backends.quantized.engine = before
    assert seen == ["x86", "x86"]


def test_a_model_with_functions_of_torchvision_is_scripted(tmp_path: Path) -> None:
    model = tnn.BasicBlock(3, 3, stochastic_depth=0.5).eval()
    assert deploy.export(model, example(), tmp_path / "model.pt").difference == 0


def test_compiled_int8_runs_kernels_of_int8(written) -> None:
    content = written("aoti-int8").path.read_bytes()
    for kernel in (b"aoti_torch_cpu__qconv_pointwise", b"aoti_torch_cpu__qlinear_pointwise"):
        assert kernel in content


@pytest.mark.parametrize("format", ["pt2", "onnx", pytest.param("aoti", marks=pytest.mark.slow)])
def test_images_that_shrink_to_a_pixel_do_not_bind_the_file(format: str, tmp_path: Path) -> None:
    """Torch takes sizes of one for constants, inside of a model too."""
    stages = [tnn.BasicBlock(channels, 2 * channels, stride=2) for channels in (3, 6, 12)]
    model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images, path = torch.randn(2, 3, 8, 8), tmp_path / "model.pt2"
    deploy.export(model, images, path, format=format)
    loaded = deploy.load(path)
    for shape in ((2, 3, 8, 8), (1, 3, 8, 8), (3, 3, 5, 7), (2, 3, 40, 64)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


def test_batches_of_one_where_a_layout_depends_on_the_batch(tmp_path: Path) -> None:
    """A convolution after a norm in channels_last: torch asks there whether the batch is one."""
    model = nn.Sequential(tnn.LayerNorm2d(3), nn.Conv2d(3, 4, 3), tnn.ConvNeXtBlock(4)).eval()
    for format in ("pt2", "onnx"):
        deploy.export(model, torch.randn(2, 3, 16, 16), tmp_path / "model", format=format)
    graph = quantized.quantize(model, [torch.randn(2, 3, 16, 16)], engine="pt2e")
    assert graph(torch.randn(1, 3, 20, 18)).shape == (1, 4, 18, 16)
