"""Models as programs of ``torch.export`` that accept every batch and image size the model accepts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental import _config as shapes

__all__ = ["any_size", "export_program"]


@contextmanager
def any_size() -> Iterator[None]:
    """Lets ``torch.export`` treat a size of one like any other size.

    By default it specializes on ones, so a program traced with images so small that features shrink to one pixel
    accepts only such images, and a program traced with larger images rejects them.
    """
    if not hasattr(shapes, "backed_size_oblivious"):  # older versions of torch
        yield
        return
    with shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # torch adds it when it loads
        yield


def export_program(model: nn.Module, pair: Tensor, sizes: dict[int, Any], advice: str = "") -> ExportedProgram:
    """Exports ``model`` for one input, ``pair``, a batch of two; ``sizes`` holds its dynamic dimensions.

    Errors: ``RuntimeError`` with ``advice`` if the model cannot be exported.
    """
    try:
        if not model.training:  # in training, batch norms reject a single value and leave that guard in the program
            with any_size():
                program = torch.export.export(model, (pair,), dynamic_shapes=(sizes,))
            if _accepts_one(program, pair):
                return program
        return torch.export.export(model, (pair,), dynamic_shapes=(sizes,))
    except Exception as error:  # torch raises many types here
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"model cannot be exported as one graph: {type(error).__name__}: {reason}\nIts forward must not depend on "
            f"the values of tensors; {advice}torch.export.export(model, (input,)) shows the full error."
        ) from error


def _accepts_one(program: ExportedProgram, pair: Tensor) -> bool:
    """Whether the program runs at batch size 1: some convolutions leave a guard because they choose a layout by it."""
    try:
        with torch.no_grad():
            program.module()(pair[:1])
    except AssertionError:
        return False
    return True
