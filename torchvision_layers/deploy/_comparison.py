"""Compares a file with the model that it was written from."""

from collections.abc import Callable
from typing import Any

import torch

from .._utils.inputs import Inputs
from .._utils.structure import flatten
from ._running import describe_shapes, exact_outputs, max_difference, perturb, run_model
from ._signature import plain
from ._subject import Subject
from .formats.format import Format

__all__ = ["compare"]

#: The share of integers and booleans that rounding may change, because they come from comparisons of rounded values.
_MAX_SHARE = 0.01
#: Multiple of the model's own rounding errors that a file may differ by. Other kernels add numbers in another order.
_MAX_AMPLIFIED = 10.0
#: How often the effect of half a step is drawn before a difference is an error: one draw may hardly move an output.
_DRAWS = 4

_CAUSES = (
    "A forward that draws random numbers can cause this, or one that was traced for some values or sizes only, or an "
    "operator that the runtime computes in another way"
)


def compare(subject: Subject, program: Callable[..., Any], inputs: Inputs, format: Format) -> float:
    """The largest difference between file and model, relative to the largest value of that output.

    Errors: ``RuntimeError`` if the file cannot run ``inputs``, or if rounding does not explain the difference.
    """
    expected = run_model(subject.model, inputs)
    shown, advice = describe_shapes(inputs), _advice(subject, format)
    causes = f"{_CAUSES}; {advice}"
    try:
        output = plain(inputs.run(program))
    except Exception as error:  # each runtime raises its own types
        raise RuntimeError(
            f"the file in format {format.name!r} cannot run {shown}, which the model accepts: {error}; {advice}"
        ) from error
    (tensors, template), (expected_tensors, expected_template) = flatten(output), flatten(expected)
    if template != expected_template:
        raise RuntimeError(
            f"the file in format {format.name!r} returns another structure or other constants than the model for "
            f"{shown}: {template} in place of {expected_template}. {causes}"
        )
    has_other_kernels = format.has_int8_kernels or subject.engine == "eager"
    moved: list[list[Any]] = []
    exact = None
    differences = [0.0]
    for i, (tensor, original) in enumerate(zip(tensors, expected_tensors, strict=True)):
        name = "" if subject.signature.has_one_output else f" in output {subject.signature.outputs[i]!r}"
        if tensor.shape != original.shape or tensor.dtype != original.dtype:
            raise RuntimeError(
                f"the file in format {format.name!r} gives {tensor.dtype} of shape {list(tensor.shape)} for {shown}"
                f"{name}, the model {original.dtype} of shape {list(original.shape)}. {causes}"
            )
        is_number = original.is_floating_point() or original.is_complex()
        largest = float(original.abs().max()) if original.numel() and is_number else 1.0
        difference, tolerance = max_difference(tensor, original), format.tolerance(subject) * largest
        if not is_number:
            tolerance = min(tolerance, _MAX_SHARE)
        elif difference > tolerance and has_other_kernels and any(subject.input_scales):
            # The effect of a value that is rounded to the other step grows from layer to layer; the model itself shows
            # how much. On networks with random weights, the differences of files were 0.4 to 0.8 of the effect of half
            # a step. A single draw may show only half of that effect.
            for seed in range(_DRAWS):
                if seed == len(moved):
                    moved.append(flatten(run_model(subject.model, perturb(inputs, subject.input_scales, seed)))[0])
                tolerance = max(tolerance, 2 * max_difference(moved[seed][i], original))
                if difference <= tolerance:
                    break
        elif difference > tolerance and subject.engine is None:
            if exact is None:
                again = flatten(run_model(subject.model, inputs))[0]
                is_random = not all(map(torch.equal, again, expected_tensors))
                exact = expected_tensors if is_random else exact_outputs(subject.model, inputs)
            tolerance = max(tolerance, _MAX_AMPLIFIED * max_difference(exact[i], original))
        if difference > tolerance:
            raise RuntimeError(
                f"the file in format {format.name!r} gives other values than the model for {shown}{name}: they differ "
                f"by {difference:.3g}, with a largest value of {largest:.3g}; rounding explains at most "
                f"{tolerance:.3g}. {causes}"
            )
        differences.append(difference / largest if difference else 0.0)
    return max(differences)


def _advice(subject: Subject, format: Format) -> str:
    """Other formats for the model, if there are any."""
    formats = {"pt2": "runs the operators of torch", "torchscript": "keeps control flow"}
    if subject.engine is not None:  # TorchScript is for int8 of the eager engine, which has no other
        del formats["torchscript" if subject.engine == "pt2e" else "pt2"]
    formats.pop(format.name, None)
    return ", ".join(f"format={name!r} {use}" for name, use in formats.items()) or "please report the model"
