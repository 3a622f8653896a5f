"""Batches of a data loader as inputs of a model, with a progress bar."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch import Tensor, nn

from .._utils.inputs import Inputs, inputs_of
from .._utils.progress import Progress

__all__ = ["iterate"]


def iterate(batches: Iterable[Any], model: nn.Module, progress: bool, label: str) -> Iterator[Inputs]:
    """The inputs of ``model`` in each batch.

    Args:
        batches: as in :func:`quantize`.
        model: the model to call.
        progress: shows a progress bar from the second batch on, if standard error is a terminal.
        label: what the bar says.
    """
    if isinstance(batches, Tensor):
        raise TypeError("batches must be an iterable of batches, got a Tensor: pass [batch]")
    total = len(batches) if isinstance(batches, Sized) else None
    bar = None
    for i, batch in enumerate(batches):
        if i == 1 and progress:
            bar = Progress(label, "batch", total, done=1)
        yield inputs_of(f"the input in batch {i}", batch, model)
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
