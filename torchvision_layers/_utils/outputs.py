"""Outputs of models, for comparisons."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .inputs import Inputs
from .structure import flatten

__all__ = ["largest", "outputs_of"]


@torch.no_grad()
def outputs_of(model: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    """All tensors that ``model`` returns; ``inputs`` stay unchanged although a model may write into them."""
    return flatten(inputs.map(Tensor.clone).run(model))[0]


def largest(tensor: Tensor) -> float:
    """The largest absolute value; zero if there is none."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0
