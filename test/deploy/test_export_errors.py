"""Errors of ``deploy.export``: each gives the reason, and a format that works if there is one."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.deploy._subject import Subject
from torchvision_layers.deploy.formats import aoti
from torchvision_layers.deploy.formats.table import FORMATS

from ._support import FunctionModule, example, float_model, int8_model

EAGER_REMEDY = "does not support a model that is int8 of engine='eager'.*: use format='torchscript'"


@pytest.mark.parametrize(
    ("engine", "format", "message"),
    [
        ("eager", "pt2", f"{EAGER_REMEDY} and a path that ends in .pt, or call .*engine='pt2e', backend='x86'"),
        ("eager", "aoti", EAGER_REMEDY),
        ("eager", "onnx", f"{EAGER_REMEDY} and a path that ends in .pt$"),
        ("eager", "onnx-qdq", EAGER_REMEDY),
        ("eager", "openvino", EAGER_REMEDY),
        ("eager", "executorch", f"{EAGER_REMEDY} and .*, or call .*engine='pt2e', backend='xnnpack'"),
        (
            "pt2e",
            "torchscript",
            "use format='pt2' or 'aoti' or 'onnx-qdq' or 'openvino' or 'coreml', or call .*'eager', backend='x86'",
        ),
        ("pt2e", "onnx", "use format='pt2' or 'aoti' or 'onnx-qdq' or 'openvino' or 'coreml'$"),
        ("pt2e", "executorch", "int8 of engine='pt2e' and backend='x86'.*, or call .*, backend='xnnpack'"),
        (
            None,
            "onnx-qdq",
            r"that is float: use .*'onnx' or 'openvino'.*, or call quantized\.quantize\(.*engine='pt2e', backend='onnx",
        ),
    ],
)
def test_unsupported_model_names_other_formats(engine: str | None, format: str, message: str, tmp_path: Path) -> None:
    model = float_model() if engine is None else int8_model(engine)
    for wrapped in (model, nn.Sequential(model).eval()):
        with pytest.raises(TypeError, match=message):
            deploy.export(wrapped, example(), (tmp_path / "model").with_suffix(FORMATS[format].suffix), format=format)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "format='pt2' with lowered=True does not support .* backend='tensorrt': use format='pt2' or 'onnx-qdq'"),
        ({"format": "aoti"}, "format='aoti' does not support .* backend='tensorrt': use .*, or call .*backend='x86'"),
        ({"format": "executorch"}, "or call quantized.quantize.*backend='xnnpack'"),
        ({"format": "onnx"}, "use format='pt2' or 'onnx-qdq'"),
    ],
)
def test_unsupported_backend_is_found_before_the_model_runs(
    kwargs: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = int8_model("pt2e")
    monkeypatch.setattr(model, "backend", "tensorrt")
    monkeypatch.setattr(model, "call", None)
    with pytest.raises(TypeError, match=message):
        deploy.export(model, example(), tmp_path / "model.pt2", **kwargs)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
@pytest.mark.parametrize("format", list(FORMATS))
def test_prepared_model_must_be_converted(engine: str, format: str, tmp_path: Path) -> None:
    model = quantized.prepare_qat(float_model(), example(), engine=engine).eval()
    with pytest.raises(TypeError, match="call quantized.convert"):
        deploy.export(model, example(), (tmp_path / "model").with_suffix(FORMATS[format].suffix), format=format)


NAN = torch.full((1, 3, 8, 8), float("nan"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "resnet"}, TypeError, "model must be a module, got 'resnet'"),
        ({"model": float_model().train()}, ValueError, "eval mode, but it is in training mode"),
        ({"model": nn.Sequential(float_model()).eval().append(nn.BatchNorm1d(5))}, ValueError, "eval mode, but 1 is"),
        ({"model": tnn.LazyConvNormAct(8).eval()}, TypeError, "must not contain lazy modules"),
        ({"model": nn.Sequential(nn.Linear(16, 2, device="meta")).eval()}, ValueError, "but 0.weight is on meta"),
        ({"model": FunctionModule(lambda self, x: x / 0)}, ValueError, "finite outputs"),
        ({"example": [[0.0]]}, TypeError, "example must be a float32 tensor, .*, got list"),
        ({"example": example().double()}, TypeError, "got torch.float64"),
        ({"example": torch.zeros(0, 3, 8, 8)}, ValueError, "at least one input"),
        ({"example": torch.zeros(3)}, ValueError, r"at least one input, got shape \[3\]"),
        ({"example": NAN}, ValueError, "example must be finite"),
        ({"example": example().to_sparse()}, TypeError, r"dense tensors, got torch.sparse_coo: .* \.to_dense\(\)"),
        ({"format": "tflite"}, ValueError, "torchscript, pt2, aoti, onnx.*, openvino, .*, executorch, got 'tflite'"),
        ({"format": ["onnx"]}, ValueError, r"format must be one of .*, got \['onnx'\]"),
        ({"format": "aoti"}, ValueError, r"path must end in \.pt2 for format='aoti'"),
        ({"lowered": 1}, TypeError, "lowered must be True or False, got 1"),
        ({"format": "onnx", "lowered": True}, ValueError, "lowered=True is for format='pt2', got format='onnx'"),
        ({"path": "no/such/folder/model.pt"}, FileNotFoundError, "existing folder"),
        ({"path": "."}, ValueError, "path must be a file"),
        ({"classes": "abcde"}, TypeError, "classes must be a sequence"),
        ({"classes": [1, 2, 3, 4, 5]}, TypeError, "classes must be a sequence"),
        ({"classes": 3}, TypeError, "classes must be a sequence of names, got 3"),
        ({"classes": list("abcda")}, ValueError, "got 'a' more than once"),
        ({"classes": list("abcd")}, ValueError, r"outputs of shape \[3, 5\], got 4"),
        ({"mean": [0.5]}, ValueError, "mean must have a value for each of 3 channels"),
        ({"mean": 0.5, "std": 0.5}, TypeError, "mean must be a sequence of numbers, got 0.5"),
        ({"mean": [0.5] * 3}, ValueError, "passed together"),
        ({"mean": [0.5] * 3, "std": [1, 0, 1]}, ValueError, "std must be positive, got 0"),
        ({"mean": [0.5, float("nan"), 0], "std": [1] * 3}, ValueError, "mean must be finite"),
        ({"about": [1]}, TypeError, "about must contain"),
        ({"about": {"set": {1}}}, TypeError, "JSON"),
        ({"about": {"loss": float("nan")}}, TypeError, "JSON"),
        ({"about": {1: "one"}}, TypeError, "JSON"),
    ],
)  # fmt: skip
def test_invalid_arguments(change: dict, error: type, message: str, tmp_path: Path) -> None:
    arguments = {"model": float_model(), "example": example(), "path": tmp_path / "model.pt"} | change
    if "path" in change:
        arguments["path"] = tmp_path / change["path"]
    with pytest.raises(error, match=message):
        deploy.export(**arguments)
    assert os.listdir(tmp_path) == []


def test_width_fixed_by_torch_is_that_of_the_file(tmp_path: Path) -> None:
    def forward(self, x):
        return self.conv(x) * float(x.shape[3])

    model = FunctionModule(forward, conv=tnn.ConvNormAct(3, 4))
    with pytest.warns(UserWarning, match="the file takes images of 16 x 16 only: .* that torch.export takes for const"):
        loaded = deploy.load(deploy.export(model, example(), tmp_path / "m.pt2", format="pt2").path)
    with pytest.raises(ValueError, match="input must have size 16 in dimension 3"):
        loaded(torch.zeros(1, 3, 16, 20))


def test_model_that_cannot_run_example(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"model must run float32 inputs of shape \[3, 3, .*: shape '\[5\]'"):
        deploy.export(FunctionModule(lambda self, x: x.reshape(5)), example(), tmp_path / "m.pt")


def test_script_error_names_other_format(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be scripted, use format='pt2'"):
        deploy.export(FunctionModule(lambda self, x: x + 1), example(), tmp_path / "m.pt", format="torchscript")


def test_export_error_names_other_format(tmp_path: Path) -> None:
    model = FunctionModule(lambda self, x: x + 1 if x.sum() > 0 else x)
    with pytest.raises(RuntimeError, match="format='torchscript' may take it"):
        deploy.export(model, example(), tmp_path / "m.pt2", format="pt2")


@pytest.mark.parametrize("format", ["torchscript", "pt2", "onnx"])
def test_file_of_other_model(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"model{FORMATS[format].suffix}"
    path.write_bytes(b"earlier")
    correct, other = FORMATS[format], float_model(seed=1)

    def serialize(subject: Subject, metadata: str) -> bytes:
        return correct.serialize(correct.restrict(replace(subject, model=other)), metadata)

    monkeypatch.setitem(FORMATS, format, replace(correct, serialize=serialize))
    with pytest.raises(RuntimeError, match=f"format '{format}' gives other values than the model"):
        deploy.export(float_model(), example(), path, format=format)
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == [path.name]


def test_random_forward_leaves_generator_unchanged(tmp_path: Path) -> None:
    model = FunctionModule(lambda self, x: nn.functional.dropout(x, training=True))
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="draws random numbers"):
        deploy.export(model, example(), tmp_path / "m.pt2", format="pt2")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (nn.DataParallel, "model is a DataParallel: pass the module that it wraps, model.module"),
        (lambda model: torch.compile(model, backend="eager"), "OptimizedModule: .*, model._orig_mod"),
        (lambda model: torch.export.export(model, (example(),)).module(), "GraphModule: pass the module that it wraps"),
    ],
)
def test_wrapped_model(wrap: Callable[[nn.Module], nn.Module], remedy: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=remedy):
        deploy.export(wrap(float_model()), example(), tmp_path / "m.pt2", format="pt2")


def test_missing_compiler(tmp_path: Path) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(FileNotFoundError, match=r"needs a C\+\+ compiler"),
    ):
        deploy.export(float_model(), example(), tmp_path / "model.pt2", format="aoti")


@pytest.mark.slow
def test_code_for_other_processor(case_file, monkeypatch: pytest.MonkeyPatch) -> None:
    path = case_file("aoti-int8").path
    monkeypatch.setattr(aoti, "_cpu_capabilities", lambda: {"architecture": "aarch64"})
    with pytest.raises(ValueError, match="compiled for another processor, with .*architecture"):
        deploy.load(path)


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'needs onnxscript: pip install "torchvision_layers\[onnx\]"'):
        deploy.export(float_model(), example(), tmp_path / "model.onnx", format="onnx")


def test_weights_above_two_gigabytes_do_not_fit_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], max_weight_bytes=1000))
    with pytest.raises(ValueError, match="format='onnx' holds at most .* of weights, .*: use format='pt2'"):
        deploy.export(float_model(), example(), tmp_path / "model.onnx", format="onnx")


def test_indices_of_adaptive_pools_are_not_in_onnx(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(2, return_indices=True)).eval()
    with pytest.raises(RuntimeError, match=r"ONNX has no operator for the indices of an adaptive max pool: use"):
        deploy.export(model, example(), tmp_path / "model.onnx", format="onnx")


def test_default_without_annotation(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x, depth=None):
            return x if depth is None else x + depth

    with pytest.raises(RuntimeError, match=r"annotate each argument .* default is None, .*or use format='pt2'"):
        deploy.export(Model().eval(), example(), tmp_path / "m.pt", format="torchscript")


def test_operator_that_onnx_lacks(tmp_path: Path) -> None:
    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(module.conv(x))

    with pytest.raises(
        RuntimeError, match=r"^torch cannot convert the model to ONNX, use format='pt2': .*svd"
    ) as raised:
        deploy.export(FunctionModule(forward, conv=nn.Conv2d(3, 4, 3)), example(), tmp_path / "m.onnx", format="onnx")
    assert len(str(raised.value)) < 300


class WithTry(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return x + 1
        except ValueError:
            return x


def test_error_of_scripting_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"use format='pt2': .*test_export_errors.py:\d+: try blocks aren't"
    ) as error:
        deploy.export(WithTry().eval(), torch.rand(1, 2), tmp_path / "model.pt", format="torchscript")
    assert "\n" not in str(error.value)
    assert "HERE" not in str(error.value)


def test_sparse_buffers_are_named_if_the_format_has_none(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    model.register_buffer("adjacency", torch.eye(4).to_sparse())
    with pytest.raises(TypeError, match=r"format='pt2' holds dense tensors only, adjacency is sparse: .* to_dense\(\)"):
        deploy.export(model, example(), tmp_path / "model.pt2", format="pt2")
    deploy.export(model, example(), tmp_path / "model.onnx", format="onnx")
    model.adjacency = model.adjacency.to_dense()
    deploy.export(model, example(), tmp_path / "model.pt2", format="pt2")


@pytest.mark.parametrize("format", ["onnx", "pt2", "torchscript"])
def test_weights_in_half_precision(format: str, tmp_path: Path) -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1).half()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).half()).float()

    with pytest.raises(TypeError, match=r"model must be in float32, last\.weight is in float16: call model\.float"):
        deploy.export(Casts().eval(), torch.randn(1, 3, 8, 8), tmp_path / "model", format=format)
