"""Batches of a data loader as inputs of a model, with a progress bar."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.input_remedies import remedy
from .._utils.inputs import Inputs, inputs_of, takes_one_input
from .._utils.progress import Progress

__all__ = ["iterate"]


def iterate(
    batches: Iterable[Any],
    model: nn.Module,
    progress: bool,
    label: str,
    seen: list[tuple[str, Inputs]] | None = None,
) -> Iterator[Inputs]:
    """The inputs of ``model`` in each batch.

    Args:
        batches: as in :func:`quantize`.
        model: the model to call.
        progress: shows a progress bar from the second batch on, if standard error is a terminal.
        label: what the bar says.
        seen: a list that will hold the last inputs, and what errors call them. Default: ``None``.
    """
    _check_batches(batches, model)
    total = len(batches) if isinstance(batches, Sized) else None
    bar, has_values, takes_integers = None, False, False
    for i, batch in enumerate(batches):
        if i == 1 and progress:
            bar = Progress(label, "batch", total, done=1)
        name = f"the input in batch {i}"
        inputs = inputs_of(name, batch, model, tries_integers=not takes_integers)
        takes_integers = not any(map(Tensor.is_floating_point, inputs.tensors()))
        if seen is not None:
            seen[:] = [(name, inputs)]
            has_values = has_values or any(bool(tensor.any()) for tensor in inputs.tensors())
        yield inputs
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
    if seen and not has_values:
        warnings.warn(
            "batches must hold typical inputs, got only zeros: the ranges of int8 values fit no others", stacklevel=2
        )


def _check_batches(batches: object, model: nn.Module) -> None:
    """Errors: ``TypeError`` for a single batch, and for anything that holds none."""
    if isinstance(batches, (Tensor, Mapping)) or _is_labeled(batches, model):
        raise TypeError(f"batches must be an iterable of batches, got a {type(batches).__name__}: pass [batch]")
    is_iterable = isinstance(batches, Iterable) or hasattr(batches, "__getitem__")
    if isinstance(batches, str) or not is_iterable or hasattr(batches, "__array__"):
        value = repr(batches) if isinstance(batches, (str, type(None))) else type(batches).__name__
        raise TypeError(
            f"batches must be a list or a data loader of batches of float32 tensors, got {value}{remedy(batches)}"
        )


def _is_labeled(batches: object, model: nn.Module) -> bool:
    """Whether ``batches`` is one pair of images and labels, for a model that takes images."""
    return (
        isinstance(batches, (list, tuple))
        and len(batches) == 2
        and all(isinstance(item, Tensor) for item in batches)
        and batches[0].is_floating_point()
        and batches[1].dtype == torch.int64
        and takes_one_input(model)
    )
