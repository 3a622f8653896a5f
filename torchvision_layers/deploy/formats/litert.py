"""Models of LiteRT, formerly TensorFlow Lite, in float or in int8, for inputs of one size.

The metadata is in a zip file at the end, as LiteRT stores labels.
"""

import contextlib
import copy
import io
import logging
import operator
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..._utils.inputs import Inputs
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
    with _quiet():
        import litert_torch

        try:
            converted = litert_torch.convert(_Flat(graph, subject.example), tuple(subject.example.tensors()))
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
    with _quiet():
        interpreter = Interpreter(model_content=content, num_threads=threads or torch.get_num_threads())
        interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    lock = threading.Lock()  # an interpreter has memory for one call

    def run(*args: Any, **kwargs: Any) -> Any:
        feed = {f"args_{i}": tensor.numpy() for i, tensor in enumerate(Inputs(args, kwargs).tensors())}
        with lock:
            outputs = runner(**feed)
        arrays = [outputs[f"output_{i}"] for i in range(len(signature.outputs))]
        return signature.restore([torch.from_numpy(array.copy()) for array in arrays])

    return run, metadata


def _round_weights_in_graph(module: fx.GraphModule) -> None:
    """Writes each int8 constant as a float one that the graph rounds, the only form that litert-torch understands."""
    for node in list(module.graph.nodes):
        if is_dequantize(node) and node.args[0].op == "get_attr":
            values = node.args[0]
            parts = [operator.attrgetter(arg.target)(module) if isinstance(arg, fx.Node) else arg for arg in node.args]
            name = f"{str(values.target).replace('.', '_')}_float"
            module.register_buffer(name, node.target(*parts, **node.kwargs))
            quantize = getattr(torch.ops.quantized_decomposed, node.target._schema.name.partition("::de")[2]).default
            with module.graph.inserting_before(node):
                rounded = module.graph.call_function(quantize, (module.graph.get_attr(name), *node.args[1:]))
            node.args = (rounded, *node.args[1:])
    module.graph.eliminate_dead_code()
    module.recompile()


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides progress and warnings of litert-torch about itself, which a caller cannot act on."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
