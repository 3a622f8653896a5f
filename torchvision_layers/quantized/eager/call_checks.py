"""Calls of modules that no int8 module can take the place of."""

from typing import Any

import torch
from torch import nn

from ..._utils.structure import flatten

__all__ = ["check_call"]


def check_call(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Raises ``TypeError`` for a call within ``torch.vmap``, ``ValueError`` for a convolution of a single image."""
    tensors = flatten(args)[0]
    if any(map(torch._C._functorch.is_batchedtensor, tensors)):
        raise TypeError(
            f"modules must not run within torch.vmap, which hides values from observers, {path or 'model'} does: call "
            "it on the whole batch"
        )
    if isinstance(module, nn.modules.conv._ConvNd) and tensors and tensors[0].dim() == len(module.kernel_size) + 1:
        raise ValueError(
            f"convolutions must get batches to be int8, {path or 'model'} gets shape {list(tensors[0].shape)}: pass "
            "batches of several inputs, or add the dimension with .unsqueeze(0)"
        )
