"""Compares a copy of a model for inference with the model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..._utils.inputs import Inputs
from ..._utils.modules import copy_module
from ..._utils.outputs import largest, outputs_of
from .._running import exact_outputs, max_difference, perturb

__all__ = ["check_same", "check_same_bfloat16", "check_same_int8"]

_INT8_TOLERANCE = 0.05
_BFLOAT16_TOLERANCE = 0.02


def check_same(result: nn.Module, model: nn.Module, inputs: Inputs, verb: str, causes: str) -> None:
    """Raises unless ``result`` computes what ``model`` does in eval mode.

    The tolerance is 1e-5 of the largest value of each output or, if that is more, eight times the model's own rounding
    error.

    Args:
        verb: what made ``result`` from ``model``, for errors.
        causes: possible causes of a difference, for errors.
    """
    reference = copy_module(model).eval()
    expected, outputs = _outputs(result, reference, inputs, verb, causes)
    exact: list[Tensor] = []
    for i, (output, original) in enumerate(zip(outputs, expected, strict=True)):
        difference, tolerance = _largest(output, original), 1e-5 * _largest(original)
        if not difference <= tolerance:
            if not exact:
                _check_deterministic(reference, inputs, expected, verb)
                exact = exact_outputs(reference, inputs)
            tolerance = max(tolerance, 8 * _largest(original, exact[i]))
        if not difference <= tolerance:  # true for NaN as well
            raise RuntimeError(
                f"{verb} changed an output by {difference:.3g}, rounding explains at most {tolerance:.3g}; {causes}"
            )


def check_same_bfloat16(result: nn.Module, model: nn.Module, inputs: Inputs, verb: str, causes: str) -> None:
    """Raises unless ``result``, which computes in bfloat16, returns what ``model`` does in eval mode.

    The tolerance is 2 % of the largest value of each output or, if that is more, eight times the effect of rounding the
    parameters and the inputs of the model. Up to 5 % of integers and booleans may differ. The arguments are those of
    :func:`check_same`.
    """
    reference = copy_module(model).eval()
    expected, outputs = _outputs(result, reference, inputs, verb, causes)
    rounded: list[Tensor] = []
    for i, (output, original) in enumerate(zip(outputs, expected, strict=True)):
        difference = max_difference(output, original)
        is_number = original.is_floating_point() or original.is_complex()
        tolerance = _BFLOAT16_TOLERANCE * _largest(original) if is_number else _INT8_TOLERANCE
        if not difference <= tolerance:
            if not rounded:
                _check_deterministic(reference, inputs, expected, verb)
                rounded = _outputs_of_rounded(reference, inputs)
            tolerance = max(tolerance, 8 * max_difference(rounded[i], original))
        if not difference <= tolerance:
            raise RuntimeError(
                f"{verb} changed an output by {difference:.3g}, bfloat16 explains at most {tolerance:.3g}; {causes}"
            )


def check_same_int8(result: nn.Module, graph: nn.Module, inputs: Inputs, scales: tuple[float, ...]) -> None:
    """Raises unless the int8 kernels of ``result`` round like an int8 ``graph``, except for ties.

    The effect of a value that is rounded to the other step grows from layer to layer. The tolerance is 5 % of the
    largest value of each output or, if that is more, twice the effect of half a step of the inputs on the graph.

    Args:
        scales: the quantization step of each floating-point input.
    """
    expected, outputs = outputs_of(graph, inputs), outputs_of(result, inputs)
    moved = None
    for i, (output, original) in enumerate(zip(outputs, expected, strict=True)):
        if output.shape != original.shape or output.dtype != original.dtype:
            raise RuntimeError(
                f"lowering changed the shape or the dtype of an output; {original.dtype} became {output.dtype}"
            )
        difference = max_difference(output, original)
        tolerance = _INT8_TOLERANCE * (_largest(original) if original.is_floating_point() else 1.0)
        if difference > tolerance:
            moved = moved or outputs_of(graph, perturb(inputs, scales))
            tolerance = max(tolerance, 2 * max_difference(moved[i], original))
        if difference > tolerance:
            raise RuntimeError(
                f"lowering changed an output by {difference:.3g}, rounding explains at most {tolerance:.3g}"
            )


def _outputs(
    result: nn.Module, reference: nn.Module, inputs: Inputs, verb: str, causes: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of the model and of the copy, which have the same shapes."""
    expected = outputs_of(reference, inputs)
    if not any(tensor.numel() for tensor in expected):
        raise ValueError("model must return at least one tensor with numbers to compare for batch")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in expected):
        raise ValueError("model must give finite outputs for batch, got NaN or infinity")
    try:
        outputs = outputs_of(result, inputs)
    except Exception as error:  # any type, for shapes or names that do not match
        raise RuntimeError(f"the model cannot run after {verb}: {error}; {causes}") from error
    if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in expected]:
        raise RuntimeError(f"{verb} changed the number or the shapes of the outputs; {causes}")
    return expected, outputs


def _check_deterministic(reference: nn.Module, inputs: Inputs, expected: Sequence[Tensor], verb: str) -> None:
    if not all(map(torch.equal, outputs_of(reference, inputs), expected)):
        raise RuntimeError(
            f"{verb} cannot be verified: the model must return the same result for the same input in eval mode; its "
            "forward draws random numbers or changes its own state"
        )


def _outputs_of_rounded(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs of a copy of ``model`` whose parameters and inputs are rounded to bfloat16."""
    rounded = copy_module(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(_rounded(parameter))
    return outputs_of(rounded, inputs.map(_rounded))


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().to(tensor.dtype) if tensor.is_floating_point() else tensor


def _largest(values: Tensor, others: Tensor | None = None) -> float:
    """The largest absolute value, or the largest difference between two tensors, of any dtype."""
    wide = [tensor if tensor.is_complex() else tensor.double() for tensor in (values, others) if tensor is not None]
    return largest(wide[0] if others is None else wide[0] - wide[1])
