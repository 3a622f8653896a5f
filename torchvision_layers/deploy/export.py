"""Writes a model to a file that runs without this package, after comparing the file with the model."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .._utils.atomic import atomic_path
from .._utils.checks import check_float32, check_module, check_number
from ._inputs import max_difference, other_batch, perturb, run_model
from ._metadata import describe
from ._subject import Subject
from .formats.table import Format, check_support, find_format
from .integrity.checksum import append_checksum, read_verified

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """A file that was written, with its format and its size in bytes.

    ``difference`` is the largest difference between the outputs of file and model, relative to the largest output. It
    was measured on inputs of all ``shapes``.
    """

    path: Path
    format: str
    size: int
    difference: float
    shapes: tuple[tuple[int, ...], ...]


def export(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    format: str = "torchscript",
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    about: Mapping[str, object] | None = None,
) -> Exported:
    """Writes ``model`` to a file that runs without this package, for every batch and image size that the model accepts.

    The file is written under a temporary name, loaded, and compared with the model on ``example``, on other batches and
    on images of another size. Then it is renamed to ``path``. If there is an error, an earlier file stays unchanged.

    Args:
        model: a model in eval mode on the CPU that takes one tensor and returns one. Float, or int8 from
            :mod:`torchvision_layers.quantized`.
        example: a batch of typical inputs, float32.
        path: the file to write, in an existing folder.
        format: ``"torchscript"``, for float and ``engine="eager"``; ``"pt2"``, a program of torch.export, and
            ``"aoti"``, compiled for this processor, for float and ``engine="pt2e"``; ``"onnx"`` for float;
            ``"onnx-qdq"`` for int8 of ``engine="pt2e"``, preferably with ``backend="onnxruntime"``; ``"executorch"``
            for float, and for ``engine="pt2e"`` with ``backend="xnnpack"``. Default: ``"torchscript"``.
        classes: names of the outputs along their last dimension, for the metadata. Default: none.
        mean: the value to subtract from each channel of an input, for the metadata; the file does not subtract it.
            Default: none.
        std: the value to divide each channel by afterwards, for the metadata. Default: none.
        about: further facts for the metadata, as JSON values. Default: none.

    Errors: ``TypeError`` for a model that the format does not support, with the formats that do, and for an argument of
    another type; ``ValueError`` for an argument that breaks its rule, a model in training mode, and outputs that are
    not finite; ``FileNotFoundError`` if the folder or a compiler is missing; ``ImportError`` if the format needs a
    package that is not installed; ``RuntimeError`` if the model cannot be written in the format, or if the file gives
    other values; ``OSError`` if the disk is full.
    """
    check_module("model", model)
    _check_example(example)
    file_format = find_format(format)
    target = _check_path(path, file_format)
    _check_normalization(mean, std, example)
    facts = _check_about(about)
    # Dropout that stays active in eval mode, and tools of torch, may draw random numbers; the caller's generator must
    # not notice.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        subject = Subject.of(model, example)
        check_support(file_format, subject)
        file_format.require((*file_format.writer_packages, *file_format.reader_packages))
        _check_classes(classes, subject.output_shape)
        metadata = describe(subject, format, classes, mean, std, facts)
        with atomic_path(target) as temporary:
            content = file_format.serialize(subject, metadata)
            temporary.write_bytes(append_checksum(content, file_format.container))
            program, text = file_format.deserialize(read_verified(temporary), temporary)
            if text != metadata:
                raise RuntimeError(f"the file in format {format!r} contains other metadata than it was written with")
            inputs = _inputs_to_compare(subject)
            difference = max(_compare(subject, program, input, file_format) for input in inputs)
            size = temporary.stat().st_size
    return Exported(target, format, size, difference, tuple(tuple(input.shape) for input in inputs))


def _inputs_to_compare(subject: Subject) -> list[Tensor]:
    example, resized = subject.example, subject.resized_example
    inputs = [example, other_batch(example, 1), other_batch(example, len(example) + 1)]
    return inputs if resized is None else [*inputs, resized, other_batch(resized, 1)]


def _compare(subject: Subject, program: Callable[[Tensor], Tensor], input: Tensor, format: Format) -> float:
    """The largest difference between file and model, relative to the largest output.

    Errors: ``RuntimeError`` if the file cannot run ``input``, or if the difference is larger than rounding can make it.
    """
    shape = list(input.shape)
    expected = run_model(subject.model, input.clone())
    try:
        output = program(input)
    except Exception as error:  # each runtime raises its own types
        raise RuntimeError(
            f"the file in format {format.name!r} cannot run an input of {shape}, which the model accepts: {error}"
        ) from error
    difference, largest = max_difference(output, expected), float(expected.abs().max())
    tolerance = format.tolerance(subject) * largest
    if difference > tolerance and format.has_int8_kernels and subject.input_scale:
        # The effect of a value that is rounded to the other step grows from layer to layer; the model itself shows how
        # much. On networks with random weights, the differences of files were 0.4 to 0.8 of the effect of half a step.
        tolerance = max(
            tolerance,
            2 * max_difference(run_model(subject.model, perturb(input, subject.input_scale)), expected),
        )
    if difference > tolerance:
        raise RuntimeError(
            f"the file in format {format.name!r} gives other values than the model for an input of {shape}: they "
            f"differ by {difference:.3g}, with a largest value of {largest:.3g}; rounding explains at most "
            f"{tolerance:.3g}. A forward that draws random numbers can cause this, or one that was traced for some "
            "values or sizes only; format='torchscript' keeps control flow"
        )
    return difference / largest if difference else 0.0


def _check_example(example: Tensor) -> None:
    check_float32("example", example)
    if example.dim() < 2 or example.numel() == 0:
        raise ValueError(f"example must be a batch of at least one input, got shape {list(example.shape)}")
    if example.device.type != "cpu":
        raise ValueError(f"example must be on the CPU, got {example.device}")
    if not bool(torch.isfinite(example).all()):
        raise ValueError("example must be finite, got NaN or infinity")


def _check_path(path: str | Path, format: Format) -> Path:
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must be in an existing folder, got {path}")
    if target.exists() and not target.is_file():
        raise ValueError(f"path must be a file, got {path}")
    if format.is_suffix_required and target.suffix != format.suffix:
        raise ValueError(f"path must end in {format.suffix} for format={format.name!r}, got {path}")
    return target


def _check_normalization(mean: Sequence[float], std: Sequence[float], example: Tensor) -> None:
    for argument, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Sequence):
            raise TypeError(f"{argument} must be a sequence of numbers, got {values!r}")
        if len(values) not in (0, example.shape[1]):
            raise ValueError(f"{argument} must have a value for each of {example.shape[1]} channels, got {values!r}")
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
