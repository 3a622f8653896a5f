"""Loads files of :func:`export` to run them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from .._utils.checks import check_float32, check_path, check_shape, check_threads
from .._utils.empty_batches import has_no_images, run_without_images
from .._utils.inputs import Inputs
from ..quantized.finite import check_not_nan
from ._metadata import parse
from ._signature import Signature, plain
from .formats.table import FORMATS, format_of
from .integrity.checksum import read_verified

__all__ = ["Loaded", "load"]


class Loaded:
    """A model in a file, called on a batch, with the ``format`` and the ``metadata`` from the file.

    It is called like the model in the example of :func:`export`, on tensors in every memory format, and records no
    gradients. It returns tuples, lists and dicts. The sizes of a single input must match ``metadata["input_shape"]``,
    where ``None`` means any size; several inputs, or one of integers, are described by ``metadata["inputs"]``, where
    equal names mean equal sizes. Normalize inputs yourself, with ``metadata["mean"]`` and ``metadata["std"]``.

    It is always in eval mode and on the CPU: :meth:`eval` returns it as it is, and it has no other methods of a module.
    """

    def __init__(self, path: Path, call: Callable[..., Any], metadata: dict[str, Any]) -> None:
        #: Runtimes other than torch have pools and activations that make numbers of NaN.
        self._may_hide_nan = bool(FORMATS[metadata["format"]].reader_packages)
        self.path = path
        self.format: str = metadata["format"]
        self.metadata = metadata
        self._call = call
        self._signature = Signature.from_json(metadata)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._check(Inputs(plain(args), plain(kwargs)))
        if self.metadata["quantization"] is not None:
            check_not_nan(inputs)
        elif self._may_hide_nan:
            _check_numbers(inputs)
        with torch.no_grad():
            # Compiled code assumes the memory layout of the example and ignores strides.
            dense = inputs.map(lambda tensor: tensor.detach().contiguous())
            return run_without_images(dense, self._run) if has_no_images(dense) else self._run(dense)

    def _run(self, inputs: Inputs) -> Any:
        return plain(inputs.run(self._call))

    def eval(self) -> Self:
        """Returns this object, which is always in eval mode."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Raises ``RuntimeError`` unless ``mode`` is ``False``."""
        if mode:
            raise RuntimeError(
                "a file cannot be trained: train the model that it was exported from, and export it again"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        hint = ": a file is no module; change the model that it was exported from" if hasattr(nn.Module, name) else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def _check(self, inputs: Inputs) -> Inputs:
        """The inputs in the order of the example."""
        signature = self._signature
        inputs = signature.in_order(inputs)
        is_float = signature.inputs[0].dtype == "float32"
        if is_float and signature.has_one_input and len(inputs.args) == 1 and not inputs.kwargs:
            check_float32("input", inputs.args[0])
        signature.check(inputs)
        sizes: dict[str, tuple[int, str]] = {}
        for spec, tensor in zip(signature.inputs, inputs.tensors(), strict=True):
            if tensor.device.type != "cpu":
                raise ValueError(f"{spec.name} must be on the CPU, got {tensor.device}")
            if str(tensor.dtype) != f"torch.{spec.dtype}":
                raise TypeError(f"{spec.name} must be a {spec.dtype} tensor, got {tensor.dtype}")
            check_shape(spec.name, tensor, [size if isinstance(size, int) else None for size in spec.shape])
            for i, axis in enumerate(spec.shape):
                size = tensor.shape[i]
                if size == 0 and (i > 0 or isinstance(axis, int)):
                    shape = list(tensor.shape)
                    raise ValueError(f"{spec.name} must have no empty dimension except the batch, got shape {shape}")
                if isinstance(axis, str) and sizes.setdefault(axis, (size, spec.name))[0] != size:
                    raise ValueError(
                        f"{spec.name} must have the {axis} of {sizes[axis][1]}, {sizes[axis][0]}, got shape "
                        f"{list(tensor.shape)}"
                    )
        return inputs

    def __repr__(self) -> str:
        return f"Loaded({str(self.path)!r}, format={self.format!r})"


def _check_numbers(inputs: Inputs) -> None:
    """Errors: ``ValueError`` for inputs with NaN or positive infinity. Negative infinity is usual in masks."""
    for tensor in inputs.tensors():
        if tensor.is_floating_point() and tensor.numel() and not tensor.max() < float("inf"):
            raise ValueError(
                "inputs must not contain NaN or positive infinity, which the runtime of the file may replace by a "
                f"number, got one in a tensor of shape {list(tensor.shape)}"
            )


def _check_providers(providers: object) -> None:
    is_sequence = isinstance(providers, Sequence) and not isinstance(providers, str) and len(providers) > 0
    if not is_sequence or not all(isinstance(name, str) or _is_pair(name) for name in providers):  # type: ignore[attr-defined]
        raise TypeError(f"providers must be a sequence of names, or pairs of a name and options, got {providers!r}")


def _is_pair(provider: object) -> bool:
    if not isinstance(provider, tuple) or len(provider) != 2:
        return False
    name, options = provider
    return isinstance(name, str) and isinstance(options, dict)


def load(
    path: str | Path, *, threads: int | None = None, providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None
) -> Loaded:
    """The model in a file of :func:`export`; the name of the file does not matter.

    The checksum of the file is verified before anything else in it is read. This finds damage, not malice: the guide to
    deployment describes what each format can do when it is loaded.

    Args:
        path: the file.
        threads: for runtimes with threads of their own, those of ONNX, OpenVINO and LiteRT, how many to use. Default:
            ``None``, as many as torch uses now.
        providers: for ONNX, the execution providers of onnxruntime that may run operators, in order of preference:
            names, or pairs of a name and options. Default: ``None``, ``["CPUExecutionProvider"]``.

    Errors: ``FileNotFoundError`` if there is no file; ``ValueError`` for a file that is cut off, altered, made for
    another processor, or not written by :func:`export`, for ``threads`` if the file runs on the threads of
    torch, and for ``providers`` that its runtime does not have here; ``TypeError`` for ``providers`` that are no
    sequence; ``ImportError`` if its format needs a missing package, with the extra that installs it.
    """
    if threads is not None:
        check_threads(threads)
    if providers is not None:
        _check_providers(providers)
    path = check_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if (path / "Manifest.json").is_file():
        raise ValueError(f"{path} is for Core ML, which runs on Apple's systems: load it with coremltools there")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        content = read_verified(path)
        format = format_of(content, path)
        format.require(format.reader_packages)
        call, text = format.read(content, path, threads, providers)
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
