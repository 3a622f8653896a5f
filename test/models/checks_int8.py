"""Int8 models differ from the model by what rounding explains, on every batch and size, and after copies and loads."""

import copy
import re

import torch
from torch import nn

from torchvision_layers import quantized

from .comparing import check_equal, check_explained
from .outcomes import CheckError, RefusedError, refuse
from .subject import Batches, Subject, outputs_of

__all__ = ["FIXED", "check_int8", "check_state", "quantize"]

#: The message of a graph for images of another size; it issued a warning when it was made.
FIXED = re.compile("must have|sizes that the forward of the model supports")


def quantize(subject: Subject, engine: str, backend: str) -> tuple[nn.Module, RefusedError | None]:
    """An int8 model, and the refusal that ``allow_float=True`` lifted.

    Errors: ``RefusedError`` if nothing lifts it; ``CheckError`` for an error that is none.
    """
    key = (engine, backend)
    if key not in subject.results:
        try:
            subject.results[key] = _quantize(subject, engine, backend)
        except (CheckError, RefusedError) as error:
            subject.results[key] = error
    result = subject.results[key]
    if isinstance(result, Exception):
        raise result
    return result


def _quantize(subject: Subject, engine: str, backend: str) -> tuple[nn.Module, RefusedError | None]:
    try:
        return _calibrate(subject, engine, backend, allow_float=False), None
    except RefusedError as refusal:
        if "allow_float=True" not in refusal.message:
            raise
        return _calibrate(subject, engine, backend, allow_float=True), refusal


def _calibrate(subject: Subject, engine: str, backend: str, allow_float: bool) -> nn.Module:
    """An int8 model, calibrated on images of all sizes if it takes them."""
    for sizes in (len(subject.sizes), 1):
        batches = Batches(subject, sizes)
        try:
            return quantized.quantize(
                subject.model(), batches, engine=engine, backend=backend, allow_float=allow_float, progress=False
            )
        except Exception as error:
            is_fixed = engine == "pt2e" and batches.is_calibrating and FIXED.search(str(error))
            if not is_fixed or sizes == 1:
                raise refuse(error, subject.text, not batches.is_calibrating) from error
    raise AssertionError("the loop returns or raises")


def check_int8(subject: Subject, engine: str, backend: str) -> None:
    int8, refusal = quantize(subject, engine, backend)
    first, x = outputs_of(int8, subject.inputs()), subject.inputs()
    slack = 2.0 if backend == "tensorrt" else 1.0  # half of its steps are below zero
    check_explained(first, subject.expected(), subject.estimate, "int8", slack)
    for batch in (1, 3):  # images of the calibration set: a clipped value of others is no error
        part = x.map(lambda tensor, batch=batch: tensor[:batch])
        check_explained(
            outputs_of(int8, part),
            subject.expected_of(part),
            subject.estimate,
            f"int8, batch of {batch}",
            2.5 * slack,  # calibration clips the largest values, which a global maximum picks
        )
    empty = outputs_of(int8, x.map(lambda tensor: tensor[:0]))
    if [tensor.shape[1:] for tensor in empty] != [tensor.shape[1:] for tensor in first] or any(map(len, empty)):
        raise CheckError(f"int8, empty batch: outputs have shapes {[list(tensor.shape) for tensor in empty]}")
    _check_sizes(subject, int8, engine, 3 * slack)
    check_equal(outputs_of(copy.deepcopy(int8), x), first, "a copy of int8")
    _check_modes(int8)
    check_equal(outputs_of(int8, x), first, "int8 in a model that was trained")
    if refusal is not None:
        raise refusal


def _check_sizes(subject: Subject, int8: nn.Module, engine: str, slack: float) -> None:
    for size in range(1, len(subject.sizes)):
        try:
            outputs = outputs_of(int8, subject.inputs(2, size))
        except ValueError as error:
            if engine == "pt2e" and FIXED.search(str(error)):
                continue
            raise CheckError(f"int8, size {size}: {error}") from error
        check_explained(outputs, subject.expected(2, size), subject.estimate, f"int8, size {size}", slack)


def _check_modes(int8: nn.Module) -> None:
    parent = nn.Sequential(int8, nn.Identity())
    try:
        parent.train()
    except RuntimeError as error:
        if "an int8 model cannot be trained" not in str(error):
            raise CheckError(f"unknown error: {error}") from error
    parent.eval()


def check_state(subject: Subject, engine: str, backend: str) -> None:
    """The state of an int8 model, loaded into one of the same architecture with other weights."""
    int8, _ = quantize(subject, engine, backend)
    other = subject.build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)  # larger weights may give infinity, where one exp follows another
    x = subject.batch(seed=2)
    target = quantized.quantize(other, [x], engine=engine, backend=backend, progress=False, allow_float=True)
    try:
        keys = target.load_state_dict(int8.state_dict())
    except RuntimeError as error:
        raise refuse(error, subject.text) from error
    if keys.missing_keys or keys.unexpected_keys:
        raise CheckError(f"state: missing {keys.missing_keys}, unexpected {keys.unexpected_keys}")
    inputs = subject.inputs()
    check_equal(outputs_of(target, inputs), outputs_of(int8, inputs), "int8 with a loaded state")
