"""Concatenation as a layer."""

import torch
import torch.fx
from torch import Tensor, nn

from ..._utils.checks import check_int, is_tensor

__all__ = ["Concatenation"]


class Concatenation(nn.Module):
    r"""Concatenates tensors along one dimension: :math:`y = [x_1, \ldots, x_n]`.

    The skip connection of `DenseNet <https://arxiv.org/abs/1608.06993>`_ (eq. 2), as a module that hooks, reports and
    feature extractors can name. After quantization with the default engine, it computes as
    ``quantized.Concatenation``, which takes the same arguments.

    Args:
        dim: the dimension; a negative one counts from the last. Default: ``1``, the channels.

    Errors: ``TypeError`` for an argument or an input of the wrong type; ``ValueError`` for no tensors, a dimension that
    they do not have, or tensors whose shapes differ in another dimension.

    Shape: input a list or tuple of tensors :math:`(N, C_i, *)`, output :math:`(N, \sum_i C_i, *)` with ``dim=1``.

    Examples::

        >>> enn.Concatenation()([torch.rand(2, 4, 8, 8), torch.rand(2, 6, 8, 8)]).shape
        torch.Size([2, 10, 8, 8])
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = check_int("dim", dim, minimum=-8)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
            return _concatenate(inputs, self.dim)
        _check(inputs, self.dim)
        return torch.cat(inputs, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def _concatenate(inputs: list[Tensor], dim: int) -> Tensor:
    """Concatenates, and then checks only the rules that torch does not, which takes less time than ``_check``."""
    try:
        output = torch.cat(inputs, dim)
    except (IndexError, RuntimeError, TypeError, ValueError):
        _check(inputs, dim)
        raise
    if is_tensor(output, "output"):
        # Torch promotes dtypes, and skips an empty vector among tensors of any shape.
        dims, dtype = output.dim(), output.dtype
        is_plain = -dims <= dim < dims and dtype.is_floating_point
        for input in inputs:
            is_plain = is_plain and input.dim() == dims and input.dtype == dtype
        if not is_plain:
            _check(inputs, dim)
    return output


def _check(inputs: list[Tensor], dim: int) -> None:
    """Raises unless ``inputs`` can be concatenated along ``dim``."""
    if not torch.jit.is_scripting():
        if isinstance(inputs, torch.fx.Proxy):
            return
        if not isinstance(inputs, (list, tuple)):
            raise TypeError(f"inputs must be a list or tuple of tensors, got {type(inputs).__name__}")
    if len(inputs) == 0:
        raise ValueError("inputs must hold at least one tensor, got none")
    first = inputs[0]
    if not is_tensor(first, "inputs[0]"):
        return
    if not -first.dim() <= dim < first.dim():
        raise ValueError(f"inputs must have a dimension {dim}, got shape {list(first.shape)}")
    dim = dim % first.dim()
    for i, input in enumerate(inputs):
        if not is_tensor(input, f"inputs[{i}]"):
            return
        if not input.is_floating_point() and not input.is_quantized:
            raise TypeError(f"inputs[{i}] must have a floating-point dtype, got {input.dtype}")
        if (input.dtype == torch.float64) != (first.dtype == torch.float64):
            raise TypeError(f"inputs[{i}] must have the dtype of inputs[0], {first.dtype}, got {input.dtype}")
        others, expected = input.shape[:dim] + input.shape[dim + 1 :], first.shape[:dim] + first.shape[dim + 1 :]
        if input.dim() != first.dim() or others != expected:
            raise ValueError(
                f"inputs[{i}] must have the shape of inputs[0], {list(first.shape)}, except in dimension {dim}, "
                f"got {list(input.shape)}"
            )
