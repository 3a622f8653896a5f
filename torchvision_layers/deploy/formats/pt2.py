"""Programs of torch.export, for Python and for compilers."""

import importlib
import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .._metadata import NAME, parse
from .._subject import Subject
from ..integrity.allowlist import check_program
from ..integrity.archive import Archive
from .program import export_subject

__all__ = ["deserialize", "serialize"]


def serialize(subject: Subject, metadata: str) -> bytes:
    program = export_subject(subject)
    # The user's images must not be in the file. Without any inputs, torch would drop the guards on their sizes.
    (pair,), _ = program.example_inputs or ((subject.example,), {})
    program._example_inputs = (torch.zeros(1).expand(pair.shape),), {}
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={NAME: metadata})
    return content.getvalue()


def deserialize(content: bytes, path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    archive = Archive(content, path)
    check_program(archive)
    metadata = archive.read(f"extra/{NAME}").decode()
    if parse(metadata, path)["quantization"] is not None:
        # It registers the operators that quantize and dequantize, without which torch cannot load the graph.
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda x: module(x), metadata
