"""Programs of torch.export, for Python and for compilers."""

import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..._utils.inputs import Inputs
from .._metadata import NAME, parse
from .._subject import Subject
from ..integrity.allowlist import check_program, is_plain_key
from ..integrity.archive import Archive
from .program import export_subject, with_program

__all__ = ["deserialize", "restrict", "save", "serialize"]


def restrict(subject: Subject) -> Subject:
    """The subject with its program, and with fixed image sizes if an export for all of them would be slow."""
    return with_program(subject, export_subject)


def serialize(subject: Subject, metadata: str) -> bytes:
    """The bytes of the file. Errors: ``TypeError`` for outputs, tensors or keys that a file cannot have."""
    assert subject.program is not None
    for key in subject.signature.dict_keys():
        if not is_plain_key(key):
            raise TypeError(f"format='pt2' holds keys of letters, digits, spaces and .,:+/-_ only, got {key!r}")
    return save(subject.program, subject, {NAME: metadata})


def save(program: ExportedProgram, subject: Subject, texts: dict[str, str]) -> bytes:
    """The bytes of a file with a program and these texts.

    Errors: ``TypeError`` for outputs or tensors that a file cannot have.
    """
    if subject.signature.returns_strings:
        raise TypeError("format='pt2' cannot return strings: use format='onnx' or 'aoti', or leave them out")
    sparse = [name for name, tensor in program.state_dict.items() if tensor.layout is not torch.strided]
    if sparse:
        raise TypeError(f"format='pt2' holds dense tensors only, {sparse[0]} is sparse: replace it by its to_dense()")
    # The user's images must not be in the file. Without any inputs, torch would drop the guards on their sizes.
    pair = Inputs(*program.example_inputs) if program.example_inputs else subject.example
    zeros = pair.map(lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape))
    program._example_inputs = zeros.args, zeros.kwargs
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=texts)
    return content.getvalue()


def deserialize(content: bytes, path: Path) -> tuple[Callable[..., Any], str]:
    archive = Archive(content, path)
    check_program(archive)
    metadata = archive.read(f"extra/{NAME}").decode()
    if parse(metadata, path)["quantization"] is not None:
        # It registers the operators that quantize and dequantize, without which torch cannot load the graph.
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    module = torch.export.load(io.BytesIO(content)).module()

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return module(*args, **kwargs)
        except AssertionError as error:  # from guards on sizes, if the forward branches on them
            raise ValueError(f"input must have sizes that the program supports: {error}") from error

    return run, metadata
