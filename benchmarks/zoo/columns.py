"""The columns of the zoo: each takes a model with its batch and returns figures, or raises."""

import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

from .measures import LayerCount, decibels, layers_of_graph, layers_that_run, norms_behind_convolutions, outputs
from .models import Subject

__all__ = ["COLUMNS", "EXPORTS", "PAIRS", "SAME_PLACES", "Figures", "images"]

#: Values for JSON, by name.
Figures = dict[str, Any]


def fold(subject: Subject) -> Figures:
    network, batch = subject.network, subject.batch
    folded, seconds = _timed(lambda: deploy.fold(network, batch))
    expected, got = outputs(network, batch), outputs(folded, batch)
    largest = max(float(tensor.abs().max()) for tensor in expected)
    difference = max(float((a - b).abs().max()) for a, b in zip(expected, got, strict=True)) / largest
    left, before = norms_behind_convolutions(folded, batch), norms_behind_convolutions(network, batch)
    subject.try_in_place(folded)
    return {"difference": difference, "norms left": left, "norms": before, "seconds": seconds}


def quantize(subject: Subject, engine: str, backend: str) -> Figures:
    network, batch = subject.network, subject.batch
    int8, seconds = _timed(lambda: quantized.quantize(network, [batch], engine=engine, backend=backend, progress=False))
    rows = quantized.report(int8).rows
    fallbacks = sum(row.runs_in == "float" and row.why != "is never called" for row in rows)
    layers = layers_that_run(int8, batch) if engine == "eager" else layers_of_graph(int8)
    return {**_compared(subject, int8, layers), "fallbacks": fallbacks, "seconds": seconds}


def fx_mode(subject: Subject, backend: str) -> Figures:
    """Torch's FX mode by itself, with its default configuration."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    network, batch = subject.network, subject.batch
    torch.backends.quantized.engine = backend

    @torch.no_grad()
    def convert() -> nn.Module:
        prepared = prepare_fx(network, get_default_qconfig_mapping(backend), (batch,))
        prepared(batch)
        return convert_fx(prepared)

    expected = outputs(network, batch)
    int8, seconds = _timed(convert)
    return {**_compared(subject, int8, layers_that_run(int8, batch), expected), "seconds": seconds}


def torchao(subject: Subject, backend: str | None = None) -> Figures:
    """Torchao by itself, with the default configuration of its quantizer for x86.

    Args:
        backend: rounds where the kernels of this one do, instead of where torchao's quantizer for x86 does.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    from torchvision_layers.quantized.pt2e.quantizers import quantizer_for

    network, batch = subject.network, subject.batch

    @torch.no_grad()
    def convert() -> nn.Module:
        graph = torch.export.export(network, (batch,), strict=False).module()
        config = x86.get_default_x86_inductor_quantization_config()
        quantizer = quantizer_for(backend, config) if backend else x86.X86InductorQuantizer().set_global(config)
        prepared = prepare_pt2e(graph, quantizer)
        prepared(batch)
        return convert_pt2e(prepared)

    int8, seconds = _timed(convert)
    return {**_compared(subject, int8, layers_of_graph(int8)), "seconds": seconds}


def export(subject: Subject, format: str) -> Figures:
    """The file, from the folded model or, for int8, from the graph for onnxruntime."""
    network, batch = subject.network, subject.batch
    converted: nn.Module
    if format == "onnx-qdq":
        converted = quantized.quantize(network, [batch], engine="pt2e", backend="onnxruntime")
    else:
        converted = deploy.fold(network, batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        exported, seconds = _timed(lambda: deploy.export(converted, batch, path, format=format))
    return {"difference": exported.difference, "megabytes": exported.size / 1e6, "seconds": seconds}


EXPORTS = ("onnx", "onnx-qdq", "pt2")

#: Columns of this package, and the column to compare each with.
PAIRS = {
    "eager x86": "FX x86",
    "eager onednn": "FX onednn",
    "pt2e x86": "torchao",
    "pt2e onnxruntime": "torchao",
    "pt2e tensorrt": "torchao",
}
#: Columns whose peer rounds in fewer places, and the column of a peer that rounds in the same.
SAME_PLACES = {"pt2e onnxruntime": "torchao onnxruntime", "pt2e tensorrt": "torchao tensorrt"}

COLUMNS: dict[str, Callable[[Subject], Figures]] = {
    "fold": fold,
    "eager x86": partial(quantize, engine="eager", backend="x86"),
    "eager onednn": partial(quantize, engine="eager", backend="onednn"),
    "FX x86": partial(fx_mode, backend="x86"),
    "FX onednn": partial(fx_mode, backend="onednn"),
    "pt2e x86": partial(quantize, engine="pt2e", backend="x86"),
    "pt2e onnxruntime": partial(quantize, engine="pt2e", backend="onnxruntime"),
    "pt2e tensorrt": partial(quantize, engine="pt2e", backend="tensorrt"),
    "torchao": torchao,
    "torchao onnxruntime": partial(torchao, backend="onnxruntime"),
    "torchao tensorrt": partial(torchao, backend="tensorrt"),
    **{format: partial(export, format=format) for format in EXPORTS},
}


def images(column: str) -> int:
    """How many images a column gets. Those that measure the error of int8 need more: two say little about ranges."""
    return 2 if column == "fold" or column in EXPORTS else 8


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the seconds of this process, which other processes do not change."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = call()
    return result, time.process_time() - start


def _compared(subject: Subject, int8: nn.Module, layers: LayerCount, expected: list[Tensor] | None = None) -> Figures:
    expected = outputs(subject.network, subject.batch) if expected is None else expected
    noise = decibels(expected, outputs(int8, subject.batch))
    subject.try_in_place(int8)
    return {"decibels": noise, "layers in float": layers[0], "layers in int8": layers[1]}
