"""Comparisons of outputs with those in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .outcomes import CheckError
from .rounding import Estimate

__all__ = ["check_close", "check_equal", "check_explained"]

#: How often the estimate an error may be. On 1,500 drawn models, the largest ratio was 2.6.
_OUTPUTS, _CHANNELS = 4.0, 6.0
#: The share of an output above which rounding leaves too little of it to compare.
_LOST = 0.25


def check_equal(outputs: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
    """Raises ``CheckError`` unless all bits are equal."""
    _check_shapes(outputs, expected, what)
    for i, (output, original) in enumerate(zip(outputs, expected, strict=True)):
        if not torch.equal(output, original):
            raise CheckError(f"{what}: output {i} differs by {_largest(output.double() - original.double()):.3g}")


def check_close(
    outputs: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str, floor: float = 1e-12
) -> None:
    """Raises ``CheckError`` if a difference is above ``floor`` and ``tolerance`` of the largest output together."""
    _check_shapes(outputs, expected, what)
    for i, (output, original) in enumerate(zip(outputs, expected, strict=True)):
        difference, allowed = _largest(output.double() - original.double()), tolerance * _largest(original) + floor
        if not difference <= allowed:
            raise CheckError(f"{what}: output {i} differs by {difference:.3g}, allowed {allowed:.3g}")


def check_explained(
    outputs: Sequence[Tensor], expected: Sequence[Tensor], estimate: Estimate, what: str, slack: float = 1.0
) -> None:
    """Raises ``CheckError`` unless rounding explains the error of each output, and of each of its channels."""
    _check_shapes(outputs, expected, what)
    for i, (output, original) in enumerate(zip(outputs, expected, strict=True)):
        if not original.numel() or estimate.rms[i] > _LOST * _rms(original):
            continue
        error = output.double() - original.double()
        floor = 1e-4 * _rms(original) + 1e-9
        allowed = slack * _OUTPUTS * (estimate.rms[i] + floor)
        if not _rms(error) <= allowed:
            raise CheckError(f"{what}: the error of output {i} is {_rms(error):.3g}, rounding explains {allowed:.3g}")
        if output.dim() < 2:
            continue
        channels = error.square().transpose(0, 1).flatten(1).mean(1).sqrt()
        allowed_here = slack * _CHANNELS * (estimate.channels[i] + 0.3 * estimate.rms[i] + floor)
        if not bool((channels <= allowed_here).all()):
            worst = int((channels / allowed_here).argmax())
            raise CheckError(
                f"{what}: the error of output {i} in channel {worst} is {float(channels[worst]):.3g}, rounding "
                f"explains {float(allowed_here[worst]):.3g}"
            )


def _check_shapes(outputs: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
    shapes, expected_shapes = [list(tensor.shape) for tensor in outputs], [list(tensor.shape) for tensor in expected]
    if shapes != expected_shapes:
        raise CheckError(f"{what}: outputs have shapes {shapes}, expected {expected_shapes}")


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0
