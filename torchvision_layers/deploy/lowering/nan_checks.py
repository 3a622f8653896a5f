"""Lowered int8 programs that refuse activations which became NaN, before they are rounded."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ...quantized.finite import check_activation, may_give_nan
from .int8_kernels import quantize, quantize_affine
from .steps import Step

__all__ = ["checking_nan"]


def checking_nan(steps: Sequence[Step]) -> Sequence[Step]:
    """The steps, or steps that check what they round, if an operator among them may give NaN."""
    if not any(may_give_nan(_operator(step)) for step in steps):
        return steps
    return [replace(step, target=_CHECKED.get(step.target, step.target)) for step in steps]


def _operator(step: Step) -> str:
    return step.target.split(".")[1] if isinstance(step.target, str) else step.target.__name__


def _check_and_round(rounding: Callable[..., Tensor], input: Tensor, *args: Any) -> Tensor:
    check_activation(input)
    return rounding(input, *args)


_CHECKED: dict[Any, Callable[..., Tensor]] = {
    rounding: partial(_check_and_round, rounding) for rounding in (quantize, quantize_affine)
}
