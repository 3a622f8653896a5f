"""Programs of torch.export, for Python and for compilers."""

import importlib
import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ._archive import record
from ._kinds import check_exportable_graph
from ._metadata import NAME, input_shape_in, parse
from ._program import export_program
from ._sealing import seal_zip, sealed_content
from ._vetting import check_program

__all__ = ["check", "read", "write"]


def check(model: nn.Module) -> None:
    check_exportable_graph(model)


def write(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    program = export_program(model, example, input_shape_in(metadata))
    # The images of the user stay here. Without any inputs torch would leave out the guards on their sizes.
    (pair,), _ = program.example_inputs or ((example,), {})
    program._example_inputs = (torch.zeros(1).expand(pair.shape),), {}
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={NAME: metadata})
    path.write_bytes(seal_zip(content.getvalue()))


def read(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    content = sealed_content(path)
    check_program(content, path)
    text = record(content, f"extra/{NAME}", path).decode()
    if parse(text, path)["quantization"] is not None:
        # It registers the operators that quantize and dequantize: with it torch loads the graph, without it not.
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda x: module(x), text
