"""Calls of modules that no int8 module can take the place of."""

from collections.abc import Container
from typing import Any

import torch
from torch import nn

from ..._utils.structure import flatten
from ..exclusion import excluding_path

__all__ = ["check_call"]


def check_call(path: str, module: nn.Module, args: tuple[Any, ...], excluded: Container[str]) -> None:
    """Raises ``TypeError`` for a call within ``torch.vmap``, ``ValueError`` for inputs without a batch.

    Convolutions and linear layers in ``excluded`` run in float, which takes single images and vectors.
    """
    tensors = flatten(args)[0]
    if any(map(torch._C._functorch.is_batchedtensor, tensors)):
        raise TypeError(
            f"modules must not run within torch.vmap, which hides values from observers, {path or 'model'} does: call "
            "it on the whole batch"
        )
    single = _dims_without_batch(module)
    if tensors and tensors[0].dim() == single and excluding_path(path, excluded) is None:
        kind = "linear layers" if isinstance(module, nn.Linear) else "convolutions"
        raise ValueError(
            f"{kind} must get batches to be int8, {path or 'model'} gets shape {list(tensors[0].shape)}: pass "
            "batches of several inputs, or add the dimension with .unsqueeze(0)"
        )


def _dims_without_batch(module: nn.Module) -> int | None:
    """The dimensions of an input of a convolution or linear layer that has no batch; torch's int8 ones refuse it."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return len(module.kernel_size) + 1
    return 1 if isinstance(module, nn.Linear) else None
