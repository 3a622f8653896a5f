"""Permutation of dimensions as a layer."""

from collections.abc import Sequence

import torch
import torchvision.ops
from torch import Tensor

from .._utils.checks import check_int, is_tensor

__all__ = ["Permute"]


class Permute(torchvision.ops.Permute):
    r"""Returns a view of the input with its dimensions permuted.

    The same as ``torchvision.ops.Permute``, with checks of its argument and input.

    Args:
        dims: order of the dimensions; negative ones count from the end.
        device: accepted for a uniform signature; the layer has no parameters.
        dtype: accepted for a uniform signature; the layer has no parameters.

    Errors: ``TypeError`` if ``dims`` is not a sequence of ints; ``ValueError`` if it is not a permutation or does not
    match the number of dimensions of the input.

    Shape: input with ``len(dims)`` dimensions, output with the same sizes permuted.

    Examples::

        >>> tnn.Permute([0, 2, 3, 1])(torch.rand(2, 8, 4, 5)).shape
        torch.Size([2, 4, 5, 8])
    """

    def __init__(
        self,
        dims: Sequence[int],
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(dims, str) or not isinstance(dims, Sequence):
            raise TypeError(f"dims must be a list or tuple of ints, got {dims!r}")
        order = [check_int("dims", d, minimum=-len(dims)) for d in dims]
        if not order or sorted(d % len(order) if d < len(order) else d for d in order) != list(range(len(order))):
            raise ValueError(f"dims must contain each dimension exactly once, got {dims!r}")
        super().__init__(order)

    def forward(self, x: Tensor) -> Tensor:
        if is_tensor(x) and x.dim() != len(self.dims):
            raise ValueError(f"x must have {len(self.dims)} dimensions, got {x.dim()}: shape {list(x.shape)}")
        return torch.permute(x, self.dims)
