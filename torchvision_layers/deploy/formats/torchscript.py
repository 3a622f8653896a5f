"""TorchScript: programs for torch's own interpreter, in Python and in C++."""

import io
import keyword
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrize

from ..._utils.hooked_weights import hooked_paths
from ...quantized.eager.int8_modules import use_backend
from .._metadata import NAME, parse
from .._subject import Subject
from ..integrity.archive import Archive
from .tracing import trace

__all__ = ["deserialize", "restrict", "serialize"]

# Operators of torch that open files; ways to name them without these words; operators of other libraries, some of which
# write files. The text around a name proves nothing: TorchScript skips comments and line ends before a bracket, and
# accepts ``f = torch.save``. An error of torchvision's has "custom C++ ops" in its text, which cannot be code.
_OPENS_FILES = re.compile(
    rb'\b(?:save|from_file)\b|\bgetattr\b(?!\([\w.]+, "[^"\\\n]*"\))'
    rb"|(?<![\w.])(?<!custom C\+\+ )ops\b(?! :|\.(?:aten|onednn|prim|quantized|_quantized|torchvision)\.)"
)


def restrict(subject: Subject) -> Subject:
    """The subject with its program, and with the sizes fixed that the program cannot leave variable.

    Control flow of a float model must stay in the file, so it is scripted. An int8 model with operations in float
    cannot be scripted, but was traced when it was quantized, so it is traced again.

    Errors: ``ValueError`` if a name is a keyword of Python; ``RuntimeError`` if the model cannot be scripted, and is
    float, depends on values, or cannot be traced.
    """
    for path, _ in chain(
        subject.model.named_modules(), subject.model.named_parameters(), subject.model.named_buffers()
    ):
        if any(map(keyword.iskeyword, path.split("."))):  # torch.jit.load could not parse its code
            raise ValueError(f"model must not use keywords of Python as names for TorchScript, got {path!r}: rename it")
    computed = [path or "model" for path, m in subject.model.named_modules() if parametrize.is_parametrized(m)]
    computed += hooked_paths(subject.model)
    if computed:
        raise RuntimeError(
            f"model must have plain weights for TorchScript, {computed[0]} computes its weight by a parametrization or "
            "a hook: call deploy.fold(model) first, or use format='pt2'"
        )
    with _without_deprecation(), _int8_backend(subject.backend):
        try:
            return replace(subject, script=torch.jit.script(subject.model))
        except Exception as error:  # torch raises many types here
            if subject.engine is None:
                raise RuntimeError(f"model cannot be scripted, use format='pt2': {_reason(error)}") from error
        return trace(subject)


def _reason(error: Exception) -> str:
    """The line of the model's source that TorchScript names in an error, and the first line of the error."""
    text = str(error).strip()
    place = re.search(r'File "(.+)", line (\d+)', text)
    reason = textwrap.shorten(text.partition("\n")[0].rstrip(": "), 200, placeholder=" ...")
    return f"{place[1]}:{place[2]}: {reason}" if place else reason


def serialize(subject: Subject, metadata: str) -> bytes:
    assert subject.script is not None
    content = io.BytesIO()  # torch would name the records of a file after the file
    with _without_deprecation(), _int8_backend(subject.backend):
        try:
            torch.jit.save(subject.script, content, _extra_files={NAME: metadata})
        except RuntimeError as error:  # of a script that torch compiled, from a default that has another type
            raise RuntimeError(
                "model cannot be saved by torch.jit.save: annotate each argument of a forward whose default is None, "
                f"such as mask: Tensor | None = None, or use format='pt2': {_reason(error)}"
            ) from error
    return content.getvalue()


def deserialize(content: bytes, path: Path) -> tuple[Callable[..., Any], str]:
    archive = Archive(content, path)
    metadata = archive.read(f"extra/{NAME}").decode()
    quantization = parse(metadata, path)["quantization"]
    backend = None if quantization is None else quantization["backend"]
    _check_code(archive)
    with _without_deprecation(), _int8_backend(backend):
        module = torch.jit.load(io.BytesIO(content), map_location="cpu")

    def run(*args: Any, **kwargs: Any) -> Any:
        with _int8_backend(backend):
            return module(*args, **kwargs)

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
