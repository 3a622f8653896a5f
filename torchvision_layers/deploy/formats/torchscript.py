"""TorchScript: programs for torch's own interpreter, in Python and in C++."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ...quantized.eager.int8_modules import use_backend
from .._metadata import NAME, parse
from .._subject import Subject
from ..integrity.archive import Archive

__all__ = ["deserialize", "serialize"]

# Operators of torch that open files; ways to name them without these words; operators of other libraries, some of which
# write files. The text around a name proves nothing: TorchScript skips comments and line ends before a bracket, and
# accepts ``f = torch.save``.
_OPENS_FILES = re.compile(
    rb'\b(?:save|from_file)\b|\bgetattr\b(?!\([\w.]+, "[^"\\\n]*"\))'
    rb"|(?<![\w.])ops\b(?! :|\.(?:aten|onednn|prim|quantized|_quantized|torchvision)\.)"
)


def serialize(subject: Subject, metadata: str) -> bytes:
    content = io.BytesIO()  # torch would name the records of a file after the file
    with _without_deprecation(), _int8_backend(subject.backend):
        try:
            script = torch.jit.script(subject.model)
        except Exception as error:  # torch raises many types here
            raise RuntimeError(
                f"model cannot be scripted, use format='pt2': {type(error).__name__}: {str(error).strip()}"
            ) from error
        torch.jit.save(script, content, _extra_files={NAME: metadata})
    return content.getvalue()


def deserialize(content: bytes, path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    archive = Archive(content, path)
    metadata = archive.read(f"extra/{NAME}").decode()
    quantization = parse(metadata, path)["quantization"]
    backend = None if quantization is None else quantization["backend"]
    _check_code(archive)
    with _without_deprecation(), _int8_backend(backend):
        module = torch.jit.load(io.BytesIO(content), map_location="cpu")

    def run(input: Tensor) -> Tensor:
        with _int8_backend(backend):
            return module(input)

    return run, metadata


def _check_code(archive: Archive) -> None:
    """Raises ``ValueError`` if a program could open files, which torch's interpreter allows."""
    for name in archive:
        if re.fullmatch(r"code/.*\.py", name, re.IGNORECASE | re.DOTALL):
            match = _OPENS_FILES.search(archive.read(name))
            if match:
                raise ValueError(f"{archive.path} contains code that no model needs, in {name}: {match[0].decode()}")


@contextmanager
def _without_deprecation() -> Iterator[None]:
    # TorchScript is deprecated, but C++ programs still load models with it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")
        yield


def _int8_backend(backend: str | None) -> AbstractContextManager[None]:
    """Int8 weights are packed for the current backend when they are loaded, and some kernels check it when they run."""
    return nullcontext() if backend is None else use_backend(backend)
