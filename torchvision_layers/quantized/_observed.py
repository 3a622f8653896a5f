"""What twins and models hold where an engine observes values: identities and arithmetic, in float as torch does it."""

from torch import Tensor, nn

from .._utils.checks import check_same_shape

__all__ = ["Addition", "DeQuantStub", "FloatIsland", "Multiplication", "Observed", "ObservedActivation", "QuantStub"]


class Observed(nn.Module):
    """A place whose output the eager engine observes, and for which it puts an int8 form when it converts."""

    def __init__(self) -> None:
        super().__init__()
        self.activation_post_process = nn.Identity()  # the name by which torch.ao looks for the observer


class QuantStub(Observed):
    """Where float tensors become int8."""

    def forward(self, input: Tensor) -> Tensor:
        return self.activation_post_process(input)


class DeQuantStub(nn.Module):
    """Where int8 tensors become float."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class Addition(Observed):
    """The sum of two tensors of one shape, and its ReLU where one is fused into it."""

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


class ObservedActivation(Observed):
    """An activation that the convolution before it is to compute."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.activation_post_process(self.module(input))


class FloatIsland(nn.Module):
    """Runs in float a module that has no int8 kernel: dequantize, run, requantize."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.dequant = DeQuantStub()
        self.module = module
        self.quant = QuantStub()
        self.module.qconfig = None  # type: ignore[assignment]  # torch.ao reads it as "leave this alone"
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.quant(self.module(self.dequant(input)))
