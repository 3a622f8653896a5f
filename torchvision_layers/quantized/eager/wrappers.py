"""Modules that the engine puts around a module of the model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..layers.observed import DeQuantStub, Observed, QuantStub

__all__ = ["FloatFallback", "ObservedActivation"]


class ObservedActivation(Observed):
    """An activation that the convolution before it is to compute."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.activation_post_process(self.module(input))


class FloatOperation(nn.Module):
    """Runs a function, or the method of that name, in float: dequantize the tensors, run, quantize the result."""

    def __init__(self, operation: Callable[..., Any] | str) -> None:
        super().__init__()
        self.operation = operation
        self.quant = QuantStub()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, _dequantize, (args, kwargs))
        if isinstance(self.operation, str):
            output = getattr(args[0], self.operation)(*args[1:], **kwargs)
        else:
            output = self.operation(*args, **kwargs)
        is_activation = isinstance(output, Tensor) and output.is_floating_point()
        return self.quant(output) if is_activation else output

    def extra_repr(self) -> str:
        return self.operation if isinstance(self.operation, str) else self.operation.__name__


def _dequantize(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor


class FloatFallback(nn.Module):
    """Runs a module without an int8 kernel in float: dequantize, run, quantize."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.dequant = DeQuantStub()
        self.module = module
        self.quant = QuantStub()
        self.module.qconfig = None  # type: ignore[assignment]  # torch.ao then leaves it alone
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.quant(self.module(self.dequant(input)))
