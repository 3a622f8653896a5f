"""Modules for the places where the eager engine observes values; in float they compute what torch computes."""

from torch import Tensor, nn

from ..._utils.checks import check_same_shape

__all__ = ["Addition", "DeQuantStub", "Multiplication", "Observed", "QuantStub"]


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
    """The sum of two tensors of one shape, followed by a ReLU if one is fused into it.

    Errors: ``ValueError`` if the shapes differ: nothing is broadcast.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relu = False

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        check_same_shape("input", input, other, "other")
        total = input + other
        return self.activation_post_process(total.relu() if self.relu else total)


class Multiplication(Observed):
    """The product of two tensors."""

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        return self.activation_post_process(input * other)
