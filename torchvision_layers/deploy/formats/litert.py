"""Models of LiteRT, formerly TensorFlow Lite, in float or in int8, for inputs of one size.

The metadata is in a zip file at the end, as LiteRT stores labels. Models that begin or end in int8 take or return int8,
with a scale and a zero point in the file.
"""

import copy
import importlib
import io
import operator
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..._utils.inputs import Inputs
from ..._utils.quiet import quiet
from ..._utils.structure import flatten
from ...quantized.pt2e.nodes import is_dequantize
from .._metadata import NAME, parse
from .._signature import Signature
from .._subject import Subject
from .program import export_fixed, root_cause

__all__ = ["deserialize", "restrict", "serialize"]

restrict = partial(export_fixed, format="litert")


def serialize(subject: Subject, metadata: str) -> bytes:
    """Errors: ``RuntimeError`` if litert-torch cannot convert the model."""
    program = subject.program
    assert program is not None
    graph = copy.deepcopy(program).module(check_guards=False)
    _round_weights_in_graph(graph)
    with quiet():
        import litert_torch

        try:
            config = None if subject.engine is None else _int8_config()
            tensors = tuple(subject.example.tensors())
            converted = litert_torch.convert(_Flat(graph, subject.example), tensors, quant_config=config)
        except Exception as error:  # it raises many types
            raise RuntimeError(
                f"litert-torch cannot convert the model, use format='executorch' or 'onnx': {root_cause(error)}"
            ) from error
        content = io.BytesIO(converted.model_content())
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(zipfile.ZipInfo(NAME), metadata)
    return content.getvalue()


def deserialize(content: bytes, path: Path, threads: int | None = None) -> tuple[Callable[..., Any], str]:
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        metadata = archive.read(NAME).decode()
    signature = Signature.from_json(parse(metadata, path))
    with quiet():
        interpreter = Interpreter(model_content=content, num_threads=threads or torch.get_num_threads())
        interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    lock = threading.Lock()  # an interpreter has memory for one call

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = {f"args_{i}": tensor for i, tensor in enumerate(Inputs(args, kwargs).tensors())}
        with lock:
            arrays = runner(**{name: _quantize(tensor, inputs[name]).numpy() for name, tensor in tensors.items()})
        names = [f"output_{i}" for i in range(len(signature.outputs))]
        return signature.restore([_dequantize(torch.from_numpy(arrays[n].copy()), outputs[n]) for n in names])

    return run, metadata


def _quantize(tensor: Tensor, details: dict[str, Any]) -> Tensor:
    """An input in the type of the file: a model that begins in int8 takes int8."""
    scale, zero_point = details["quantization"]
    if not tensor.is_floating_point() or not scale:
        return tensor
    return torch.clamp(torch.round(tensor / scale) + zero_point, -128, 127).to(torch.int8)


def _dequantize(tensor: Tensor, details: dict[str, Any]) -> Tensor:
    scale, zero_point = details["quantization"]
    return (tensor.float() - zero_point) * scale if scale else tensor


def _round_weights_in_graph(module: fx.GraphModule) -> None:
    """Writes each int8 constant as a float one that the graph rounds, the only form that litert-torch understands."""
    for node in list(module.graph.nodes):
        if is_dequantize(node) and node.args[0].op == "get_attr":
            values = node.args[0]
            parts = [
                operator.attrgetter(str(arg.target))(module) if isinstance(arg, fx.Node) else arg for arg in node.args
            ]
            name = f"{str(values.target).replace('.', '_')}_float"
            module.register_buffer(name, node.target(*parts, **node.kwargs))
            quantize = getattr(torch.ops.quantized_decomposed, node.target._schema.name.partition("::de")[2]).default
            with module.graph.inserting_before(node):
                rounded = module.graph.call_function(quantize, (module.graph.get_attr(name), *node.args[1:]))
            node.args = (rounded, *node.args[1:])
    module.graph.eliminate_dead_code()
    module.recompile()


def _int8_config() -> Any:
    """Lets the converter fuse what the graph rounds into operators on integers."""
    quantize = importlib.import_module("litert_torch.quantize")
    quantizer = quantize.pt2e_quantizer.PT2EQuantizer()
    quantizer.set_global(quantize.pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True))
    return quantize.quant_config.QuantConfig(pt2e_quantizer=quantizer)


class _Flat(nn.Module):
    """Takes the tensors of a call, and returns those of the result."""

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.model = model
        self.example = example
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        return tuple(flatten(self.example.map(lambda _: next(remaining)).run(self.model))[0])
