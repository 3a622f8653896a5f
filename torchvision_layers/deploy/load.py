"""Loads files of :func:`export` to run them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import check_float32, check_shape
from ._metadata import parse
from .formats.table import format_of
from .integrity.checksum import read_verified

__all__ = ["Loaded", "load"]


class Loaded:
    """A model in a file, called on a batch, with the ``format`` and the ``metadata`` from the file.

    It takes float32 tensors in every memory format and records no gradients. The sizes must match
    ``metadata["input_shape"]``, where ``None`` means any size. Normalize inputs yourself, with ``metadata["mean"]`` and
    ``metadata["std"]``.
    """

    def __init__(self, path: Path, call: Callable[[Tensor], Tensor], metadata: dict[str, Any]) -> None:
        self.path = path
        self.format: str = metadata["format"]
        self.metadata = metadata
        self._call = call

    def __call__(self, input: Tensor) -> Tensor:
        self._check(input)
        with torch.no_grad():
            # Compiled code assumes the memory layout of the example and ignores strides.
            dense = input.detach().contiguous()
            if len(dense) == 0:  # some kernels reject an empty batch
                return self._call(dense.new_zeros((1, *dense.shape[1:])))[:0]
            return self._call(dense)

    def _check(self, input: Tensor) -> None:
        check_float32("input", input)
        if input.device.type != "cpu":
            raise ValueError(f"input must be on the CPU, got {input.device}")
        check_shape("input", input, self.metadata["input_shape"])
        if 0 in input.shape[1:]:
            raise ValueError(f"input must have no empty dimension except the batch, got shape {list(input.shape)}")

    def __repr__(self) -> str:
        return f"Loaded({str(self.path)!r}, format={self.format!r})"


def load(path: str | Path) -> Loaded:
    """The model in a file of :func:`export`; the name of the file does not matter.

    The checksum of the file is verified before anything else in it is read. This finds damage, not malice: the guide to
    deployment describes what each format can do when it is loaded.

    Errors: ``FileNotFoundError`` if there is no file; ``ValueError`` for a file that is cut off, altered, made for
    another processor, or not written by :func:`export`; ``ImportError`` if its format needs a missing package.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        content = read_verified(path)
        format = format_of(content, path)
        format.require(format.reader_packages)
        call, text = format.deserialize(content, path)
        metadata = parse(text, path)
    except (ImportError, OSError):
        raise
    except Exception as error:  # each reader raises its own types
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(
            f"{path} cannot be loaded here: deploy.export did not write it, or another version of torch did: "
            f"{type(error).__name__}: {error}"
        ) from error
    return Loaded(path, call, metadata)
