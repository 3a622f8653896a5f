"""Programs that refuse NaN where kernels would replace it by a number: in rounding and in fused activations."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...quantized.finite import check_activation, check_finite, may_give_nan
from .amx_sizes import checking_sizes
from .int8_kernels import quantize, quantize_affine
from .steps import Step

__all__ = ["checking_nan", "may_begin_nan"]

#: Post-operations by which oneDNN makes numbers of NaN.
_HIDING = {"relu", "hardtanh", "hardsigmoid"}


def may_begin_nan(steps: Sequence[Step]) -> bool:
    """Whether an operator may give NaN for finite inputs."""
    return any(may_give_nan(_operator_name(step)) for step in steps)


def checking_nan(steps: Sequence[Step]) -> Sequence[Step]:
    """Steps that check their inputs where they would hide NaN; ``steps`` itself if none would."""
    checked = [_checked(step) for step in steps]
    return steps if checked == list(steps) else checked


def _checked(step: Step) -> Step:
    if _rounds(step):
        return replace(step, target=partial(_check_and_round, step.operator()))
    if not step.is_int8() and any(isinstance(value, str) and value in _HIDING for value in step.args):
        return replace(step, target=partial(_check_and_activate, checking_sizes(step.operator())))
    return step


def _rounds(step: Step) -> bool:
    """Whether a step rounds to int8. In a file, which contains operators of torch alone, it is the last of several."""
    if step.target in (quantize, quantize_affine):
        return True
    return str(step.target) == "aten.to.dtype" and step.args[1] in (torch.int8, torch.uint8)


def _operator_name(step: Step) -> str:
    is_operator = isinstance(step.target, (str, torch._ops.OpOverload))
    return str(step.target).split(".")[1] if is_operator else getattr(step.target, "__name__", "")


def _check_and_round(rounding: Callable[..., Tensor], input: Tensor, *args: Any) -> Tensor:
    check_activation(input)
    return rounding(input, *args)


def _check_and_activate(layer: Callable[..., Tensor], *args: Any) -> Tensor:
    for value in args[:2]:  # a sum has two inputs
        if isinstance(value, Tensor) and not value.is_mkldnn:
            check_finite(value)
    return layer(*args)
