"""TorchScript: programs for torch's own interpreter, in Python and in C++."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ..quantized.eager.int8_modules import use_backend
from ._archive import record, records
from ._kinds import Kind, kind_of
from ._metadata import NAME, parse
from ._sealing import seal_zip, sealed_content

__all__ = ["check", "read", "write"]

# Torch's own operators that open files; ways to name them without these words; operators of other libraries, some of
# which write files, too. What stands around a name tells nothing: TorchScript passes over comments and line ends
# before a bracket, and knows ``f = torch.save``.
_OPENS_FILES = re.compile(
    rb'\b(?:save|from_file)\b|\bgetattr\b(?!\([\w.]+, "[^"\\\n]*"\))'
    rb"|(?<![\w.])ops\b(?! :|\.(?:aten|onednn|prim|quantized|_quantized|torchvision)\.)"
)


def check(model: nn.Module) -> None:
    if kind_of(model) is Kind.PT2E:
        raise TypeError(
            "model is a graph of engine='pt2e', which has no TorchScript: use format='pt2', 'aoti' or 'onnx-qdq', or "
            "quantize with engine='eager'"
        )


@contextmanager
def _without_deprecation() -> Iterator[None]:
    # It is deprecated, and it is what loads without Python in the C++ programs of today.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")
        yield


def write(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    content = io.BytesIO()  # torch names the records of a file after the file, those of a buffer alike
    with _without_deprecation(), _engine(parse(metadata, path)["quantization"]):
        try:
            script = torch.jit.script(model)
        except Exception as error:  # torch raises many kinds here
            raise RuntimeError(
                f"model cannot be scripted, use format='pt2': {type(error).__name__}: {str(error).strip()}"
            ) from error
        torch.jit.save(script, content, _extra_files={NAME: metadata})
    path.write_bytes(seal_zip(content.getvalue()))


def read(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    content = sealed_content(path)
    text = record(content, f"extra/{NAME}", path).decode()
    quantization = parse(text, path)["quantization"]
    _check_code(content, path)
    with _without_deprecation(), _engine(quantization):
        module = torch.jit.load(io.BytesIO(content), map_location="cpu")

    def call(input: Tensor) -> Tensor:
        with _engine(quantization):
            return module(input)

    return call, text


def _check_code(content: bytes, path: Path) -> None:
    """Raises ``ValueError`` where a program could open files, which torch's interpreter lets it."""
    for name in records(content, path):
        if re.fullmatch(r"code/.*\.py", name, re.IGNORECASE | re.DOTALL):
            found = _OPENS_FILES.search(record(content, name, path))
            if found:
                raise ValueError(f"{path} holds code that a model does not need, in {name}: {found[0].decode()}")


def _engine(quantization: dict[str, str] | None) -> AbstractContextManager[None]:
    """Int8 weights are packed on loading, for the engine in force, and some kernels choose by it when they run."""
    return nullcontext() if quantization is None else use_backend(quantization["backend"])
