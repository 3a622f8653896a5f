"""Modules for the places where the eager engine observes values; in float they compute what torch computes."""

import torch
from torch import Tensor, nn

from ..._utils.checks import check_same_shape

__all__ = ["Addition", "Concatenation", "DeQuantStub", "Multiplication", "Observed", "QuantStub"]


class Observed(nn.Module):
    """A module whose output the eager engine observes, and which it replaces by an int8 form on conversion."""

    def __init__(self) -> None:
        super().__init__()
        self.activation_post_process = nn.Identity()  # torch.ao looks for the observer under this name


class QuantStub(Observed):
    """Turns float tensors into int8 once the model is converted."""

    def forward(self, input: Tensor) -> Tensor:
        return self.activation_post_process(input)


class DeQuantStub(nn.Module):
    """Turns int8 tensors into float once the model is converted."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class Addition(Observed):
    """The sum of two tensors, followed by a ReLU or ReLU6 if one is fused into it.

    Args:
        broadcasts: accepts tensors whose shapes differ and broadcasts them, as ``+`` does. Default: ``False``.

    Errors: ``ValueError`` if the shapes differ, unless ``broadcasts`` is set.
    """

    def __init__(self, *, broadcasts: bool = False) -> None:
        super().__init__()
        self.broadcasts = broadcasts
        self.relu = False
        self.cap: float | None = None

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        if not self.broadcasts:
            check_same_shape("input", input, other, "other")
        elif input.shape != other.shape:
            input, other = torch.broadcast_tensors(input, other)
        total = input + other
        total = total.relu() if self.relu else total
        return self.activation_post_process(total if self.cap is None else total.clamp(max=self.cap))


class Concatenation(Observed):
    """Concatenates tensors along one dimension. In int8, all are requantized to the range of the result.

    Args:
        dim: the dimension. Default: ``1``, the channels.

    Errors: ``ValueError`` for no tensors; ``RuntimeError`` if their shapes differ in another dimension.

    Examples::

        >>> quantized.Concatenation()([torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4)]).shape
        torch.Size([1, 5, 4, 4])
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, inputs: list[Tensor]) -> Tensor:
        if len(inputs) == 0:
            raise ValueError("inputs must hold at least one tensor, got none")
        return self.activation_post_process(torch.cat(inputs, self.dim))


class Multiplication(Observed):
    """The product of two tensors."""

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        return self.activation_post_process(input * other)
