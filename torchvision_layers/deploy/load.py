"""Files of :func:`export`, loaded to run."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._formats import find
from ._metadata import parse

__all__ = ["Loaded", "load"]


class Loaded:
    """A model in a file, to call on a batch; ``format`` and ``metadata`` are what the file says of itself.

    It takes float32 tensors of the sizes in ``metadata["input_shape"]``, where ``None`` stands for any, in every memory
    format, and records no gradients. Inputs are not normalized: ``metadata["mean"]`` and ``["std"]`` say how.
    """

    def __init__(self, path: Path, call: Callable[[Tensor], Tensor], metadata: dict[str, Any]) -> None:
        self.path = path
        self.format: str = metadata["format"]
        self.metadata = metadata
        self._call = call

    def __call__(self, input: Tensor) -> Tensor:
        self._check(input)
        with torch.no_grad():
            # Compiled code reads memory as it was in the example, whatever the strides are.
            dense = input.detach().contiguous()
            if len(dense) == 0:  # which some kernels do not take
                return self._call(dense.new_zeros((1, *dense.shape[1:])))[:0]
            return self._call(dense)

    def _check(self, input: Tensor) -> None:
        if not isinstance(input, Tensor) or input.dtype != torch.float32:
            kind = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(f"input must be a float32 tensor, got {kind}")
        if input.device.type != "cpu":
            raise ValueError(f"input must be on the CPU, got {input.device}")
        sizes = self.metadata["input_shape"]
        if input.dim() != len(sizes):
            raise ValueError(f"input must have {len(sizes)} dimensions, got shape {list(input.shape)}")
        for i, size in enumerate(sizes):
            if size is not None and input.shape[i] != size:
                raise ValueError(f"input must have size {size} in dimension {i}, got {input.shape[i]}")
            if i > 0 and input.shape[i] == 0:
                raise ValueError(f"input must have no empty dimension but the batch, got shape {list(input.shape)}")

    def __repr__(self) -> str:
        return f"Loaded({str(self.path)!r}, format={self.format!r})"


def load(path: str | Path) -> Loaded:
    """The model in a file of :func:`export`, whatever its name ends in.

    Every byte is checked before anything is read out of it. That finds damage, not malice: see what loading means for
    safety in the documentation.

    Errors: ``FileNotFoundError`` for no file; ``ValueError`` for one that is cut off, altered or of another origin, or
    made for another processor; ``ImportError`` where its format needs a package that is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    format = _format_of(path)
    try:
        call, text = find(format).read(path)
        metadata = parse(text, path)
    except (ImportError, OSError):
        raise
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise _unreadable(path, error) from error
    except Exception as error:  # of whatever reads the file
        raise _unreadable(path, error) from error
    return Loaded(path, call, metadata)


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be loaded here; it is of another origin, or of another version of torch: "
        f"{type(error).__name__}: {error}"
    )


def _format_of(path: Path) -> str:
    """The format, or one with the same reader, by what the file holds."""
    with open(path, "rb") as file:
        head = file.read(8)
    if head[4:8] == b"ET12":
        return "executorch"
    if head[:4] != b"PK\x03\x04":
        return "onnx"  # it has no mark at its start; the one at its end is checked on reading
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except Exception as error:  # what comes of bytes that only look like a zip file
        raise ValueError(f"{path} is cut off or altered: {error}") from error
    if any(name.startswith("data/aotinductor/") for name in names):
        return "aoti"
    return "pt2" if any(name.startswith("models/") for name in names) else "torchscript"
