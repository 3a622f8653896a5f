"""Calls of modules that no int8 module can take the place of."""

from collections.abc import Container
from typing import Any

import torch
from torch import nn

from ..._utils.structure import flatten
from ..exclusion import excluding_path

__all__ = ["check_call"]


def check_call(path: str, module: nn.Module, args: tuple[Any, ...], excluded: Container[str]) -> None:
    """Raises ``TypeError`` for a call within ``torch.vmap``, ``ValueError`` for a convolution of a single image.

    Convolutions in ``excluded`` run in float, which takes single images.
    """
    tensors = flatten(args)[0]
    if any(map(torch._C._functorch.is_batchedtensor, tensors)):
        raise TypeError(
            f"modules must not run within torch.vmap, which hides values from observers, {path or 'model'} does: call "
            "it on the whole batch"
        )
    if not isinstance(module, nn.modules.conv._ConvNd) or excluding_path(path, excluded) is not None:
        return
    if tensors and tensors[0].dim() == len(module.kernel_size) + 1:
        raise ValueError(
            f"convolutions must get batches to be int8, {path or 'model'} gets shape {list(tensors[0].shape)}: pass "
            "batches of several inputs, or add the dimension with .unsqueeze(0)"
        )
