"""Modules that the engine puts around a module or a function of the model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from ..layers.observed import DeQuantStub, Observed, QuantStub

__all__ = ["FloatFallback", "FloatOperation", "MultipleFloatFallback", "ObservedActivation"]


class ObservedActivation(Observed):
    """An activation that the convolution before it is to compute."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.activation_post_process(self.module(input))


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


class MultipleFloatFallback(nn.Module):
    """A :class:`FloatFallback` for any inputs, with outputs in tuples, lists and dicts; not for TorchScript.

    Args:
        module: the module to run.
        outputs: the number of floating-point tensors that it returns.
    """

    def __init__(self, module: nn.Module, outputs: int) -> None:
        super().__init__()
        self.module = module
        self.quants = nn.ModuleList(QuantStub() for _ in range(outputs))
        self.module.qconfig = None  # type: ignore[assignment]  # torch.ao then leaves it alone
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, _dequantize, (args, kwargs))
        return _quantize(self.module(*args, **kwargs), self.quants)


class FloatOperation(nn.Module):
    """Runs a function, or the tensor method of that name, in float: dequantize, run, quantize.

    Args:
        operation: the function, or the name of the method.
        quantizes: whether to quantize the result; ``False`` if only other operations in float read it.
    """

    def __init__(self, operation: Callable[..., Any] | str, quantizes: bool = True) -> None:
        super().__init__()
        self.operation = operation
        self.quantizes = quantizes
        self.quants = nn.ModuleList([QuantStub()] if quantizes else [])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, _dequantize, (args, kwargs))
        if isinstance(self.operation, str):
            output = getattr(args[0], self.operation)(*args[1:], **kwargs)
        else:
            output = self.operation(*args, **kwargs)
        if not self.quantizes:
            return output
        missing = sum(map(is_float, tree_leaves(output))) - len(self.quants)
        if missing > 0 and type(next(self.quants[0].children(), None)) is nn.Identity:  # not prepared yet
            self.quants.extend(QuantStub() for _ in range(missing))
        return _quantize(output, self.quants)

    def extra_repr(self) -> str:
        return self.operation if isinstance(self.operation, str) else self.operation.__name__


def _quantize(output: Any, quants: nn.ModuleList) -> Any:
    """``output`` with its floating-point tensors quantized, one stub for each."""
    leaves, spec = tree_flatten(output)
    places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]
    if len(places) > len(quants):
        raise RuntimeError(
            f"an operation in float returns {len(places)} tensors, and {len(quants)} were observed; pass an example to "
            "prepare_qat"
        )
    for i, quant in zip(places, quants, strict=False):
        leaves[i] = quant(leaves[i])
    return tree_unflatten(leaves, spec)


def is_float(value: object) -> bool:
    """Whether ``value`` is a floating-point tensor, which int8 observes."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _dequantize(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor
