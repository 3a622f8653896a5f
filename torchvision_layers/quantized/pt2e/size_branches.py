"""The branch of a ``forward`` that holds for images of most sizes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..._utils.exporting import drop_guards, export_program, held_guards, prime_from
from ..._utils.inputs import Inputs, accepts
from ..._utils.modules import copy_module

__all__ = ["with_best_branch"]

#: How much larger than the example the images are whose results are compared.
_OFFSETS = (1, 2, 3, 4)

Sizes = list[dict[int, Any]]


def with_best_branch(program: ExportedProgram, model: nn.Module, pair: Inputs, sizes: Sizes) -> ExportedProgram:
    """``program``, or one for more sizes if the ``forward`` branches on the size of the image.

    A program holds one branch, and its guards reject the sizes of the others. The branch for sizes that nothing
    divides, such as one that pads to a multiple, often gives the results of all; it then loses these guards.

    Args:
        program: the program of ``model`` for ``pair``.
        model: a copy, in eval mode, that takes positional tensors.
        pair: the inputs of the program.
        sizes: the variable dimensions of each tensor.
    """
    larger = [_resized(pair, sizes, partial(_plus, offset)) for offset in _OFFSETS]
    rejected = [inputs for inputs in larger if not all(held_guards(program, model, inputs))]
    rejected = [inputs for inputs in rejected if accepts(copy_module(model), inputs)]
    if not rejected:
        return program
    compared, probe = [pair, *rejected], copy_module(model)
    if drop_guards(program, probe, compared):
        return program
    prime = _resized(pair, sizes, prime_from)
    try:
        other = export_program(model, prime, sizes, drops_batch_guards=True)
    except RuntimeError:
        return program
    return other if drop_guards(other, probe, compared) else program


def _plus(offset: int, size: int, i: int) -> int:
    return size + offset + i


def _resized(pair: Inputs, sizes: Sizes, resize: Callable[[int, int], int]) -> Inputs:
    """Inputs whose variable heights and widths, the ``i``-th from 0, are ``resize(size, i)``."""

    def grow(tensor: Tensor, variable: dict[int, Any]) -> Tensor:
        for dim in [dim for dim in variable if dim >= 2]:
            old, new = tensor.shape[dim], resize(tensor.shape[dim], dim - 2)
            tensor = tensor.index_select(dim, torch.arange(new) * old // new)
        return tensor

    return Inputs(tuple(grow(tensor, variable) for tensor, variable in zip(pair.args, sizes, strict=True)))
