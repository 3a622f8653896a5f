"""Runtimes of whole models: functions from a float model and a batch to what is called with images."""

import copy
import importlib.util
import inspect
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

__all__ = ["BACKEND", "COUNTED", "RUNTIMES", "Call"]

BACKEND = "onednn"

Call = Callable[[Tensor], Tensor]
Build = Callable[[nn.Module, Tensor], Call]


def in_channels_last(model: nn.Module, batch: Tensor) -> Call:
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return lambda x: model(x.to(memory_format=torch.channels_last))


def compiled(model: nn.Module) -> Call:
    return torch.compile(model, dynamic=False)


def pt2e(model: nn.Module, batch: Tensor, backend: str = "x86") -> nn.Module:
    return quantized.quantize(deploy.fold(model), [batch], engine="pt2e", backend=backend)


def lowered(model: nn.Module, batch: Tensor, dtype: torch.dtype = torch.float32) -> Call:
    return deploy.lower(model, batch[:1], dtype=dtype)


def through_file(model: nn.Module, batch: Tensor, format: str, **options: Any) -> Call:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("model.onnx" if format.startswith("onnx") else "model.pt2")
        deploy.export(model, batch, path, format=format, **options)
        return deploy.load(path)


def in_openvino(model: nn.Module, batch: Tensor) -> Call:
    import openvino  # optional

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        deploy.export(deploy.fold(model), batch, path, format="onnx")
        program = openvino.Core().compile_model(str(path), "CPU", {"PERFORMANCE_HINT": "LATENCY", **settings})
    return lambda x: torch.from_numpy(program(x.numpy())[0])


def _runtimes() -> dict[str, Build]:
    """The runtimes that this machine has, in the order of the table."""
    lowered_file = partial(through_file, format="pt2", lowered=True)
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    has_files = "lowered" in inspect.signature(deploy.export).parameters
    has_openvino = importlib.util.find_spec("openvino") is not None
    return {
        "eager": lambda model, batch: model,
        "channels_last": in_channels_last,
        "folded": lambda model, batch: deploy.fold(model),
        "lowered": lowered,
        **({"lowered bfloat16": partial(lowered, dtype=torch.bfloat16)} if has_bfloat16 else {}),
        **({"lowered file": lowered_file} if has_files else {}),
        "compiled": lambda model, batch: compiled(deploy.fold(model)),
        "aoti": lambda model, batch: through_file(deploy.fold(model), batch, format="aoti"),
        "onnx": lambda model, batch: through_file(deploy.fold(model), batch, format="onnx"),
        **({"openvino": in_openvino} if has_openvino else {}),
        "int8 eager": lambda model, batch: quantized.quantize(model, [batch], backend=BACKEND),
        "int8 lowered": lambda model, batch: lowered(pt2e(model, batch), batch),
        **({"int8 lowered file": lambda model, batch: lowered_file(pt2e(model, batch), batch)} if has_files else {}),
        "int8 compiled": lambda model, batch: compiled(pt2e(model, batch)),
        "onnx-qdq": lambda model, batch: through_file(pt2e(model, batch, "onnxruntime"), batch, format="onnx-qdq"),
    }


RUNTIMES = _runtimes()
#: Runtimes whose memory is allocated by torch.
COUNTED = [name for name in RUNTIMES if name not in ("onnx", "onnx-qdq", "openvino")]
