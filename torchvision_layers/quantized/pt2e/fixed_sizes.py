"""Image sizes that an export takes for constants although the model leaves them open."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from ..._utils.inputs import Inputs, accepts
from ..._utils.modules import copy_module

__all__ = ["check_variable_images"]


def check_variable_images(inputs: list[Any], model: nn.Module, pair: Inputs) -> None:
    """Raises ``RuntimeError`` if an image size of ``inputs`` is a constant that ``model`` does not require.

    Args:
        inputs: the inputs of the graph, as the export traced them.
        model: takes ``pair``, positional tensors.
        pair: the inputs that it was exported with.
    """
    shapes = [tensor.shape for tensor in inputs]
    fixed = [[d for d in range(2, len(shape)) if is_concrete_int(shape[d]) and shape[d] > 1] for shape in shapes]
    for i, dims in enumerate(fixed):
        if dims and accepts(copy_module(model), Inputs(tuple(map(_doubled, pair.args, fixed)))):
            raise RuntimeError(
                f"torch.export fixes dimension {dims[0]} of the input of shape {list(pair.args[i].shape)}, although "
                "the model accepts other sizes: its forward uses that size as a Python number; pass "
                "dynamic_sizes=False for a graph of this size"
            )


def _doubled(tensor: Tensor, dims: list[int]) -> Tensor:
    for dim in dims:
        tensor = torch.cat([tensor, tensor], dim)
    return tensor
