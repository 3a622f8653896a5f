"""Writes a model to a file that runs without this package, after comparing the file with the model."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.atomic import atomic_path
from .._utils.checks import check_bool, check_number, check_path
from .._utils.inputs import Inputs
from ..quantized.precision import in_float32
from ._comparison import compare
from ._example import check_example
from ._metadata import describe
from ._running import shapes_of
from ._subject import Subject, check_model
from .formats.format import Format
from .formats.table import LOWERED, check_suffix, check_support, find_format, format_of_suffix
from .integrity.checksum import Container, append_checksum, read_verified

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """A file that was written, with its format and its size in bytes, including the weights beside it.

    ``difference`` is the largest difference between the outputs of file and model, relative to the largest output. It
    was measured on inputs of all ``shapes``, each of which is a tuple of shapes if there are several inputs. It is NaN
    for Core ML, which only Apple's systems run.
    """

    path: Path
    format: str
    size: int
    difference: float
    shapes: tuple[tuple[Any, ...], ...]


def export(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | Mapping[str, Any],
    path: str | Path,
    *,
    format: str | None = None,
    lowered: bool | None = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    about: Mapping[str, object] | None = None,
) -> Exported:
    """Writes ``model`` to a file that runs without this package, for every batch and image size that the model accepts.

    The file is written under a temporary name, loaded, and compared with the model on ``example``, on other batches and
    on images of another size, of all inputs together and of each by itself. Then it is renamed to ``path``. If there is
    an error, an earlier file stays unchanged. If the model does not take one image more than the example, the file is
    for the example's sizes only, with a warning.

    The file returns tuples, lists and dicts: a named tuple becomes a tuple, a dataclass or another mapping a dict. ONNX
    and ExecuTorch have a flat list of outputs. Those of ONNX have the names of the parameters of ``forward`` and of the
    keys in its output; tensors without a key are ``output_0``, ``output_1`` and so on, a single one ``output``.

    Args:
        model: a model in eval mode on the CPU. Float, or int8 from :mod:`torchvision_layers.quantized`. It returns one
            or more tensors; numbers, strings and ``None`` beside them are stored as constants.
        example: typical inputs of one call: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
            Tensors are float32, or integers that the model converts itself, and may be in tuples, lists and dicts.
            Numbers, strings and ``None`` are constants of the file. The first dimension of the first tensor is the
            batch, and so is that of every tensor with the same one.
        path: the file to write, in an existing folder. Its suffix chooses the format: ``.pt2``, ``.pt`` or ``.ts`` for
            TorchScript, ``.onnx``, ``.xml`` for OpenVINO, whose weights go beside it, into ``.bin``, ``.mlpackage``,
            ``.tflite`` or ``.pte``.
        format: ``"pt2"``, a program of torch.export, and ``"aoti"``, compiled for this processor, for float and
            ``engine="pt2e"``; ``"torchscript"``, which torch has deprecated, for float and ``engine="eager"``;
            ``"onnx"`` for float; ``"onnx-qdq"`` for int8 of ``engine="pt2e"``, preferably with
            ``backend="onnxruntime"``; ``"openvino"`` for float and for the same int8; ``"coreml"``, in float16, for
            float and ``engine="pt2e"``, and ``"coreml-float32"`` for float; ``"litert"`` for float, and for
            ``engine="pt2e"`` with ``backend="litert"``; ``"executorch"`` for float, and for ``engine="pt2e"`` with
            ``backend="xnnpack"``. Default: ``None``, the format of the suffix that supports the model; without a
            suffix, ``"torchscript"`` for int8 of ``engine="eager"``, which only that format can hold, and ``"pt2"`` for
            any other model.
        lowered: for ``"pt2"``, whether to write the program of :func:`lower`, which runs on CPUs with oneDNN at the
            speed of a lowered model; a :class:`LoweredModel` is written as it is. ``False`` writes the model with the
            operators of its ``forward``, to run on other devices or to compile. Default: ``None``, ``True`` if
            ``format`` is ``None`` and its default is ``"pt2"``.
        classes: names along the last dimension of the first output, for the metadata. Default: none.
        mean: the value to subtract from each channel of the first input, for the metadata; the file does not subtract
            it. Default: none.
        std: the value to divide each channel by afterwards, for the metadata. Default: none.
        about: further facts for the metadata, as JSON values. Default: none.

    Errors: ``TypeError`` for a model that the format does not support, with the formats that do, and for an argument of
    another type; ``ValueError`` for an argument that breaks its rule, a suffix that is unknown or that of another
    format, a model in a wrapper or in training mode, and outputs that are not finite; ``FileNotFoundError`` if the
    folder or a compiler is missing; ``PermissionError`` if the folder is read-only; ``ImportError`` if the format needs
    a package that is not installed; ``RuntimeError`` if the model cannot be written in the format, or if the file gives
    other values; ``OSError`` if the disk is full.
    """
    check_model(model)
    inputs = check_example(example, model)
    path = check_path("path", path)
    file_format = _find_format(model, path, format, lowered)
    check_support(file_format, model)
    file_format.require((*file_format.writer_packages, *file_format.reader_packages))
    target = _check_target(path, file_format)
    _check_normalization(mean, std, inputs)
    facts = _check_about(about)
    # Dropout that stays active in eval mode, and tools of torch, may draw random numbers; the caller's generator must
    # not notice.
    with torch.no_grad(), torch.random.fork_rng(devices=[]), in_float32():
        subject = Subject.of(model, inputs)
        _check_classes(classes, subject.output_shape)
        subject = file_format.restrict(subject)
        metadata = describe(subject, file_format.name, classes, mean, std, facts)
        with atomic_path(target, file_format.beside) as temporary:
            size = _write(file_format.serialize(subject, metadata), temporary, file_format)
            if file_format.deserialize is None:
                return Exported(target, file_format.name, size, float("nan"), ())
            program, text = file_format.read(read_verified(temporary), temporary)
            if text != metadata:
                raise RuntimeError(
                    f"the file in format {file_format.name!r} contains other metadata than it was written with"
                )
            compared = subject.compared
            difference = max(compare(subject, program, inputs, file_format) for inputs in compared)
    return Exported(target, file_format.name, size, difference, tuple(map(shapes_of, compared)))


def _write(contents: bytes | tuple[bytes, ...] | dict[str, bytes], path: Path, format: Format) -> int:
    """Writes the files of a format, with a checksum in the first, and returns their size."""
    if isinstance(contents, dict):
        files = {path / name: content for name, content in contents.items()}
    else:
        first, *others = contents if isinstance(contents, tuple) else (contents,)
        paths = [path, *map(path.with_suffix, format.beside)]
        files = dict(zip(paths, [append_checksum(first, format.container), *others], strict=True))
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return sum(map(len, files.values()))


def _find_format(model: nn.Module, path: Path, format: str | None, lowered: bool | None) -> Format:
    if lowered is not None:
        check_bool("lowered", lowered)
    if format is None:
        format = LOWERED.name if lowered and not path.suffix else format_of_suffix(path, model)
        lowered = format == LOWERED.name if lowered is None else lowered
    return find_format(format, bool(lowered))


def _check_target(target: Path, format: Format) -> Path:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must be in an existing folder, got {target}")
    if not os.access(os.path.realpath(target.parent), os.W_OK):
        raise PermissionError(f"path must be in a folder that this process may write to, got {target}")
    check_suffix("path", target, format)
    if format.container is Container.FOLDER:
        if target.exists() and not (target / "Manifest.json").is_file():
            raise ValueError(f"path must be a package for Core ML, or not exist yet, got {target}")
    elif target.exists() and not target.is_file():
        raise ValueError(f"path must be a file, got {target}")
    for suffix in format.beside:
        beside = Path(os.path.realpath(target)).with_suffix(suffix)
        if beside.exists() and not (target.exists() and beside.is_file()):
            raise ValueError(
                f"path must leave other files alone, but {target} needs {beside}, which exists: rename one"
            )
    return target


def _check_normalization(mean: Sequence[float], std: Sequence[float], example: Inputs) -> None:
    channels = next(tensor.shape[1] for tensor in example.tensors() if tensor.dim() >= 2)
    for argument, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Sequence):
            raise TypeError(f"{argument} must be a sequence of numbers, got {values!r}")
        if len(values) not in (0, channels):
            raise ValueError(f"{argument} must have a value for each of {channels} channels, got {values!r}")
        for value in values:
            if check_number(argument, value) <= 0 and argument == "std":
                raise ValueError(f"std must be positive, got {value}")
    if len(mean) != len(std):
        raise ValueError(f"mean and std must be passed together, got {mean!r} and {std!r}")


def _check_classes(classes: Sequence[str], output_shape: Sequence[int]) -> None:
    if (
        isinstance(classes, str)
        or not isinstance(classes, Sequence)
        or not all(isinstance(name, str) for name in classes)
    ):
        raise TypeError(f"classes must be a sequence of names, got {classes!r}")
    if len(set(classes)) != len(classes):
        duplicate = next(name for name in classes if list(classes).count(name) > 1)
        raise ValueError(f"classes must be unique, got {duplicate!r} more than once")
    if classes and (not output_shape or len(classes) != output_shape[-1]):
        raise ValueError(
            f"classes must name the last dimension of outputs of shape {list(output_shape)}, got {len(classes)} names"
        )


def _check_about(about: Mapping[str, object] | None) -> dict[str, object]:
    try:
        facts = dict(about or {})
        is_same = json.loads(json.dumps(facts, allow_nan=False)) == facts
    except (TypeError, ValueError) as error:
        raise TypeError(f"about must contain JSON values only: {error}") from error
    if not is_same:  # JSON would turn a tuple, or a key that is a number, into something else
        raise TypeError(f"about must contain JSON values only, with strings as keys, got {about!r}")
    return facts
