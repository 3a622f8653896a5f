"""Rows on misuse: what a layer must refuse, and how it says so."""

import re

import torch
from torch import Tensor

from .._cell import Cell
from .._row import NA, row
from .._spec import BadArguments, BadInput

__all__ = ["errors", "unknown_keyword", "wrong_width"]


def _refuses(cell: Cell, bad: BadArguments | BadInput) -> str | None:
    """``None`` where it is refused as it should be, or what happened instead."""
    kwargs = {**cell.kwargs(), **bad.kwargs}
    # Not below: what the constructor refuses is no bad input, and its message must not pass for that of the call.
    layer = cell.spec.cls(**kwargs).train(bad.training) if isinstance(bad, BadInput) else None
    try:
        if layer is None or isinstance(bad, BadArguments):
            cell.spec.cls(**kwargs)
            return "was accepted by the constructor"
        layer(torch.zeros(bad.input) if isinstance(bad.input, tuple) else bad.input)
        return "was accepted"
    except bad.error as error:
        return None if re.search(bad.message, str(error)) else f"gave the message {str(error)[:200]!r}"
    except Exception as error:  # any other type is what the check is about
        return f"raised {type(error).__name__}: {str(error)[:200]}"


@row(
    "errors",
    per_layer=True,
    not_applicable=(
        NA("no bad arguments or inputs given", lambda cell: not (cell.spec.bad_arguments or cell.spec.bad_inputs)),
    ),
)
def errors(cell: Cell) -> None:
    """Bad arguments fail at construction and bad inputs at the call, with type, argument, rule and value."""
    found = []
    bads: list[BadArguments | BadInput] = [*cell.spec.bad_arguments, *cell.spec.bad_inputs]
    for bad in bads:
        what = _refuses(cell, bad)
        if what is not None:
            given = f"{bad.kwargs}" if isinstance(bad, BadArguments) else f"{describe(bad.input)} {bad.kwargs or ''}"
            found.append(f"{bad.kind.value}: {given} {what}, expected {bad.error.__name__} {bad.message!r}")
    assert not found, "; ".join(found)


def describe(input: object) -> str:
    return f"{input.dtype} {tuple(input.shape)}" if isinstance(input, Tensor) else repr(input)


@row("unknown_keyword", per_layer=True)
def unknown_keyword(cell: Cell) -> None:
    """A misspelt keyword is refused by its name."""
    try:
        cell.spec.cls(**cell.kwargs(), no_such_argument=1)
        said = "nothing"
    except TypeError as error:
        said = str(error)
    assert "no_such_argument" in said, f"no_such_argument=1 was answered with {said}"


def _width_axis(cell: Cell) -> int | None:
    """Where the channels stand: second or last, and not free."""
    places = (1, len(cell.sample.shape) - 1)
    return next((dim for dim in places if 0 < dim < len(cell.sample.shape) and dim not in cell.sample.free_dims), None)


def _has_no_width(cell: Cell) -> bool:
    axis = _width_axis(cell)
    if axis is None:
        return True
    layer = cell.fresh()
    tensors = [*layer.parameters(), *layer.buffers()]
    return not any(cell.sample.shape[axis] in tensor.shape[:2] for tensor in tensors)  # the rest are kernels


@row("wrong_width", not_applicable=(NA("no parameter or buffer has the width of the input", _has_no_width),))
def wrong_width(cell: Cell) -> None:
    """Inputs of one channel, and of one too many, are refused: nothing is stretched to fit."""
    layer = cell.layer()
    axis = _width_axis(cell)
    assert axis is not None
    for width in (1, cell.sample.shape[axis] + 1):
        shape = [width if dim == axis else size for dim, size in enumerate(cell.sample.shape)]
        try:
            output = layer(torch.randn(shape))
        except Exception:  # any word will do: what it says is for the row errors
            continue
        raise AssertionError(f"an input of shape {shape} gives {tuple(output.shape)}")
