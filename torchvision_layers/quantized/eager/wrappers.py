"""Modules that the engine puts around a module or a function of the model."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.inputs import Inputs, positional_names
from ..._utils.structure import map_tensors
from ..layers.observed import DeQuantStub, Observed, QuantStub
from .stubs import Stubs, dequantize, dequantize_contiguous
from .weight_token import WeightToken

__all__ = [
    "FloatArithmetic",
    "FloatFallback",
    "FloatOperation",
    "Int8Child",
    "MultipleFloatFallback",
    "ObservedActivation",
    "is_of_user",
    "named_user_modules",
]


class ObservedActivation(Observed):
    """An activation that the convolution before it is to compute."""

    takes_int8 = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.activation_post_process(self.module(input))


class FloatFallback(nn.Module):
    """Runs a module without an int8 kernel in float: dequantize, run, quantize."""

    takes_int8 = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # Torch would turn the integers of an embedding into floats.
        self.dequant = nn.Identity() if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else DeQuantStub()
        self.module = module
        self.quant = nn.Identity() if hasattr(module, "returns_float") else QuantStub()
        #: Whether it may depend on the memory format of its input.
        self.needs_contiguous = any(map(is_of_user, module.modules()))
        self.module.qconfig = None  # type: ignore[assignment]  # torch.ao then leaves it alone
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        input = self.dequant(input)
        if self.needs_contiguous:
            input = input.contiguous()
        return self.quant(self.module(input))


def is_of_user(module: nn.Module) -> bool:
    """Whether the class of a module is defined outside torch, torchvision and this package."""
    return type(module).__module__.partition(".")[0] not in ("torch", "torchvision", "torchvision_layers")


class FloatArithmetic(FloatFallback):
    """A :class:`FloatFallback` for a sum or a product."""

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return self.quant(self.module(self.dequant(input), self.dequant(other)))


class MultipleFloatFallback(nn.Module):
    """A :class:`FloatFallback` for any inputs, with outputs in tuples, lists and dicts; not for TorchScript.

    Args:
        module: the module to run.
        outputs: the number of floating-point tensors that it returns; ``None`` leaves them in float.
    """

    takes_int8 = True

    def __init__(self, module: nn.Module, outputs: int | None) -> None:
        super().__init__()
        self.module = module
        self.quantizes = outputs is not None
        self.quants = Stubs(outputs or 0)
        self.module.qconfig = None  # type: ignore[assignment]  # torch.ao then leaves it alone
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Results of the whole model stay in float; its inputs keep their memory format.
        args, kwargs = map_tensors(dequantize_contiguous if self.quantizes else dequantize, (args, kwargs))
        output = self.module(*args, **kwargs)
        return self.quants.quantize(output) if self.quantizes else output


class FloatOperation(nn.Module):
    """Runs a function, or the tensor method of that name, in float: dequantize, run, quantize.

    Args:
        operation: the function, or the name of the method.
        quantizes: whether to quantize the result; ``False`` if only other operations in float read it.
    """

    takes_int8 = True

    def __init__(self, operation: Callable[..., Any] | str, quantizes: bool = True) -> None:
        super().__init__()
        self.operation = operation
        self.quantizes = quantizes
        self.quants = Stubs(int(quantizes))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = map_tensors(dequantize, (args, kwargs))
        if isinstance(self.operation, str):
            output = getattr(args[0], self.operation)(*args[1:], **kwargs)
        else:
            output = self.operation(*args, **kwargs)
        return self.quants.quantize(output) if self.quantizes else output

    def extra_repr(self) -> str:
        return self.operation if isinstance(self.operation, str) else self.operation.__name__


class Int8Child(nn.Module):
    """Runs a module in int8 for a ``forward`` that computes in float: quantize, run, dequantize.

    The ``forward`` can read the attributes of the module here. A weight reads as a :class:`WeightToken`.

    Args:
        module: the module to run.
        will_train: whether the module will be trained, and so needs its own bias.
    """

    takes_int8 = True

    def __init__(self, module: nn.Module, will_train: bool) -> None:
        super().__init__()
        self.module = module
        self.quants = Stubs(1)
        unwrapped = module.module if isinstance(module, MultipleFloatFallback) else module
        #: The names of the arguments of the module, which may be wrapped later.
        self.input_names = positional_names(unwrapped.forward)
        self.will_train = will_train
        weight = module._parameters.get("weight")
        #: Shape and device of the weight.
        self.weight_like = None if weight is None else (weight.shape, weight.device)
        self.has_bias = module._parameters.get("bias") is not None
        #: The bias that a function gets together with the weight, if it is not the one of the module.
        self.passed_bias: Tensor | None = None
        #: The bias that the module had before it got the passed one.
        self.own_bias: Tensor | None = None
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = Inputs(args, kwargs).in_order(self.input_names)
        is_contiguous = all(map(Tensor.is_contiguous, inputs.tensors()))
        args, kwargs = self.quants.quantize((inputs.args, inputs.kwargs))
        output = self.module(*args, **kwargs)
        return map_tensors(dequantize_contiguous if is_contiguous else dequantize, output)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _ENGINE_ATTRIBUTES or name.startswith("__"):
                raise
        if name == "weight" and self.weight_like is not None:
            return WeightToken.of(self, *self.weight_like)
        if name == "bias" and (self.passed_bias is not None or not self.has_bias):
            return self.own_bias
        value = getattr(self.module, name)
        return value() if name == "bias" and inspect.ismethod(value) else value  # in int8 modules of torch

    def run_with_bias(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """The output of the module for a function that got its weight and this bias.

        Errors: ``ValueError`` if the bias is neither the one of the module nor that of the first call.
        """
        own = self.bias
        if bias is own:
            return self(input)
        bias = torch.zeros(self.weight_like[0][0]) if bias is None else bias.detach()  # type: ignore[index]
        if not (self.will_train or self.passed_bias is not None or self.quants.is_prepared()):
            self.own_bias = None if own is None else own.detach()
            self.passed_bias = bias.clone()
            self.module.bias = nn.Parameter(bias.clone())
        expected = own if self.passed_bias is None else self.passed_bias
        if expected is None or not bool((bias == expected).all()):
            raise ValueError(
                "a forward passes the weight of a layer with another bias than that of the layer, which cannot be "
                "trained and must be the same in each call"
            )
        return self(input)


def named_user_modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules below ``module``, itself included, with the paths that they had before some were wrapped."""
    if isinstance(module, (FloatFallback, Int8Child, MultipleFloatFallback)):
        module = module.module
    yield path, module
    for name, child in module.named_children():
        yield from named_user_modules(child, f"{path}.{name}".lstrip("."))


_ENGINE_ATTRIBUTES = {"activation_post_process", "fuse_model", "is_unused", "module", "qconfig"}
