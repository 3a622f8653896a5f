"""A model as a file that runs without this package, compared with the model before it gets its name."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._utils.atomic import atomic_path
from .._utils.checks import check_number
from ._comparing import difference, dynamic_sizes, nudged, other_batch, run
from ._formats import find
from ._kinds import Kind, first_step, kind_of, quantized_part
from ._metadata import describe

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """A file that was written: where, in which format, and its size in bytes.

    ``difference`` is the largest difference between file and model over inputs of all ``shapes``, relative to the
    largest output.
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
    """Writes ``model`` to a file that runs without this package, for batches and images of every size it takes.

    The file is written under a temporary name, loaded back, and compared with the model on ``example``, on other
    batches and on images of another size. Only then it gets its name: after an error an earlier file is as it was.

    Args:
        model: in eval mode on the CPU; takes one tensor and returns one. Float, or int8 from :mod:`quantized`.
        example: a batch of inputs such as it will meet, float32.
        path: where to write, in a folder that exists.
        format: ``"torchscript"``, for float and ``engine="eager"``; ``"pt2"``, a program of torch.export, and
            ``"aoti"``, compiled for this processor, for float and ``engine="pt2e"``; ``"onnx"`` for float;
            ``"onnx-qdq"`` for int8 of ``engine="pt2e"``, best with ``backend="onnxruntime"``; ``"executorch"`` where
            that package is installed. Default: ``"torchscript"``.
        classes: names of the outputs along their last dimension, for the metadata. Default: none.
        mean: what is to be subtracted from each channel of an input, for the metadata; the file does not do it.
            Default: none.
        std: what is to divide each channel then, as ``mean``. Default: none.
        about: further facts for the metadata, as JSON has them. Default: none.

    Errors: ``TypeError`` for a model that the format cannot hold, which names one that can, and for what is no model or
    no tensor; ``ValueError`` for other arguments that break their rule, for a model in training mode and for outputs
    that are not finite; ``FileNotFoundError`` for a folder or a compiler that does not exist; ``RuntimeError`` where
    the model cannot be written in the format, or the file gives other values; ``ImportError`` where the format needs a
    package that is not installed; ``OSError`` where the disk is full.
    """
    _check_model(model)
    _check_example(example)
    chosen = find(format)
    target = _check_path(path, format, chosen.suffix)
    _check_normalization(mean, std, example)
    facts = _check_about(about)
    chosen.check(model)
    # Dropout that a forward leaves on, and tools of torch, may draw numbers, which nobody else should miss.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        example = example.detach().contiguous()
        _check_classes(classes, run(model, example))
        sizes, other = dynamic_sizes(model, example)
        inputs = [example, other_batch(example, 1), other_batch(example, len(example) + 1)]
        inputs += [] if other is None else [other, other_batch(other, 1)]
        metadata = describe(model, format, sizes, classes, mean, std, facts)
        with atomic_path(target) as temporary:
            chosen.write(model, example, temporary, metadata)
            call, text = chosen.read(temporary)
            if text != metadata:
                raise RuntimeError(f"the file in format {format!r} holds other metadata than it was given")
            bound = chosen.float_bound if kind_of(model) is Kind.FLOAT else chosen.int8_bound
            step = first_step(model) if chosen.rounds else 0.0
            largest = _compare(model, call, inputs, format, bound, step)
            size = temporary.stat().st_size
    return Exported(target, format, size, largest, tuple(tuple(input.shape) for input in inputs))


def _compare(
    model: nn.Module,
    call: Callable[[Tensor], Tensor],
    inputs: Sequence[Tensor],
    format: str,
    bound: float,
    step: float,
) -> float:
    """The largest difference on all inputs, relative to the largest output.

    Errors: where it is above ``bound`` and, for a file that rounds inputs in a ``step``, above what rounding can do.
    """
    largest = 0.0
    for input in inputs:
        shape = list(input.shape)
        expected = run(model, input.clone())
        try:
            got = call(input)
        except Exception as error:  # of whatever runs the file
            raise RuntimeError(
                f"the file in format {format!r} cannot run an input of {shape}, which the model takes: {error}"
            ) from error
        found, scale = difference(got, expected), float(expected.abs().max())
        allowed = bound * scale
        if found > allowed and step:
            # A value rounded to the other side changes more with each layer; by how much, the model itself shows. On
            # networks with random weights, files were off by 0.4 to 0.8 of what half a step of the input does.
            allowed = max(allowed, 2 * difference(run(model, nudged(input, step)), expected))
        if found > allowed:
            raise RuntimeError(
                f"the file in format {format!r} gives other values than the model for an input of {shape}: "
                f"{found:.3g} apart where the largest is {scale:.3g}, at most {allowed:.3g} are rounding. A forward "
                "that draws numbers does that, or one that was traced for some values or sizes only, where "
                "format='torchscript' keeps control flow"
            )
        largest = max(largest, found / scale if found else 0.0)
    return largest


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {model!r}")
    part = quantized_part(model)  # torch makes modules of int8 in training mode, in which nothing of them differs
    int8 = set() if part is None else {*part.modules()} - {part}
    training = [path for path, module in model.named_modules() if module.training and module not in int8]
    if training:
        raise ValueError(f"model must be in eval mode, call model.eval(): {training[0] or 'it'} is in training mode")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"model must know its channels, run a batch through it first: {name} is lazy")
        if tensor.device.type != "cpu":
            raise ValueError(f"model must be on the CPU, {name} is on {tensor.device}")


def _check_example(example: Tensor) -> None:
    if not isinstance(example, Tensor) or example.dtype != torch.float32:
        kind = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(f"example must be a float32 tensor, got {kind}")
    if example.dim() < 2 or example.numel() == 0:
        raise ValueError(f"example must be a batch of at least one input, got shape {list(example.shape)}")
    if example.device.type != "cpu":
        raise ValueError(f"example must be on the CPU, got {example.device}")
    if not bool(torch.isfinite(example).all()):
        raise ValueError("example must be finite, it holds NaN or infinity")


def _check_path(path: str | Path, format: str, suffix: str) -> Path:
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {path}")
    if target.exists() and not target.is_file():
        raise ValueError(f"path must be a file, {path} is none")
    if suffix and target.suffix != suffix:
        raise ValueError(f"path must end in {suffix} for format={format!r}, got {path}")
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
        raise ValueError(f"mean and std must be given together, got {mean!r} and {std!r}")


def _check_classes(classes: Sequence[str], output: Tensor) -> None:
    if (
        isinstance(classes, str)
        or not isinstance(classes, Sequence)
        or not all(isinstance(name, str) for name in classes)
    ):
        raise TypeError(f"classes must be a sequence of names, got {classes!r}")
    if len(set(classes)) != len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise ValueError(f"classes must be unique, {twice!r} is there more than once")
    if classes and (output.dim() == 0 or len(classes) != output.shape[-1]):
        raise ValueError(f"classes must name the last dimension of outputs of {list(output.shape)}, got {len(classes)}")


def _check_about(about: Mapping[str, object] | None) -> dict[str, object]:
    try:
        facts = dict(about or {})
        is_same = json.loads(json.dumps(facts, allow_nan=False)) == facts
    except (TypeError, ValueError) as error:
        raise TypeError(f"about must hold values of JSON only: {error}") from error
    if not is_same:  # a tuple or a key that is a number would come back as something else
        raise TypeError(f"about must hold values of JSON only, with strings for keys, got {about!r}")
    return facts
