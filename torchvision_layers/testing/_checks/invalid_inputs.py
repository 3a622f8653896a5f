"""Checks of errors: arguments and inputs that a layer must reject, and the messages."""

import re

import torch
from torch import Tensor

from .._case import Case
from .._check import NotApplicable, check
from .._spec import BadArguments, BadInput

__all__ = ["errors", "unknown_keyword", "wrong_width"]


def _problem(case: Case, bad: BadArguments | BadInput) -> str | None:
    """``None`` if the layer rejects it as specified, otherwise a description of the result."""
    kwargs = {**case.kwargs(), **bad.kwargs}
    # Outside the try block: an error of the constructor must not count as one of the call.
    layer = case.place(case.spec.cls(**kwargs)).train(bad.training) if isinstance(bad, BadInput) else None
    try:
        if layer is None or isinstance(bad, BadArguments):
            case.spec.cls(**kwargs)
            return "was accepted by the constructor"
        inputs = (torch.zeros(input) if isinstance(input, tuple) else input for input in (bad.input, *bad.others))
        layer(*(input.to(case.device) if isinstance(input, Tensor) else input for input in inputs))
        return "was accepted"
    except bad.error as error:
        return None if re.search(bad.message, str(error)) else f"raised the message {str(error)[:200]!r}"
    except Exception as error:  # a wrong type is a failure of the check
        return f"raised {type(error).__name__}: {str(error)[:200]}"


@check(
    "errors",
    per_layer=True,
    not_applicable=(
        NotApplicable(
            "no bad arguments or inputs specified", lambda case: not (case.spec.bad_arguments or case.spec.bad_inputs)
        ),
    ),
)
def errors(case: Case) -> None:
    """Bad arguments fail at construction and bad inputs at the call; messages name argument, rule and value."""
    problems = []
    bads: list[BadArguments | BadInput] = [*case.spec.bad_arguments, *case.spec.bad_inputs]
    for bad in bads:
        problem = _problem(case, bad)
        if problem is not None:
            value = f"{bad.kwargs}" if isinstance(bad, BadArguments) else f"{describe(bad.input)} {bad.kwargs or ''}"
            problems.append(f"{bad.kind.value}: {value} {problem}, expected {bad.error.__name__} {bad.message!r}")
    assert not problems, "; ".join(problems)


def describe(input: object) -> str:
    return f"{input.dtype} {tuple(input.shape)}" if isinstance(input, Tensor) else repr(input)


@check("unknown_keyword", per_layer=True, reads_values=False)
def unknown_keyword(case: Case) -> None:
    """A misspelled keyword raises a TypeError that names it."""
    try:
        case.spec.cls(**case.kwargs(), no_such_argument=1)
        message = "no error"
    except TypeError as error:
        message = str(error)
    assert "no_such_argument" in message, f"no_such_argument=1 raised {message}"


def _channels_dim(case: Case) -> int | None:
    """The dimension of the channels: second or last, and not free."""
    dims = (1, len(case.sample.shape) - 1)
    return next((dim for dim in dims if 0 < dim < len(case.sample.shape) and dim not in case.sample.free_dims), None)


def _has_no_channels(case: Case) -> bool:
    axis = _channels_dim(case)
    if axis is None:
        return True
    layer = case.fresh()
    tensors = [*layer.parameters(), *layer.buffers()]
    return not any(case.sample.shape[axis] in tensor.shape[:2] for tensor in tensors)  # the rest are kernels


@check(
    "wrong_width",
    reads_values=False,
    not_applicable=(NotApplicable("no parameter or buffer has as many channels as the input", _has_no_channels),),
)
def wrong_width(case: Case) -> None:
    """Inputs with one channel, or one too many, raise an error instead of broadcasting."""
    layer = case.layer()
    axis = _channels_dim(case)
    assert axis is not None
    for channels in (1, case.sample.shape[axis] + 1):
        shape = [channels if dim == axis else size for dim, size in enumerate(case.sample.shape)]
        try:
            output = layer(torch.randn(shape, device=case.device))
        except Exception:  # the check `errors` looks at the message
            continue
        raise AssertionError(f"an input of shape {shape} returns {tuple(output.shape)}")
