"""The weight of an int8 layer as a ``forward`` in float sees it."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["WeightToken"]

_ATTRIBUTES = {"device", "dtype", "is_cpu", "is_cuda", "is_quantized", "layout", "ndim", "requires_grad", "shape"}
#: How a user resolves an error: the forward then computes with the weight itself.
_ADVICE = "; pass the path of that layer in exclude, which leaves it in float"
_METHODS = {"dim", "element_size", "is_floating_point", "ndimension", "numel", "size"}


class Layer(Protocol):
    """A convolution or linear layer whose weight a function gets."""

    module: nn.Module

    def run_with_bias(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """The output of the layer, which has this bias."""


class WeightToken(Tensor):
    """A tensor with the shape of a weight: functions that compute with the weight run the int8 layer instead.

    Any other function raises ``TypeError``, so that nothing can be computed from its values.
    """

    layer: Layer

    @classmethod
    def of(cls, layer: Layer, shape: torch.Size, device: torch.device) -> "WeightToken":
        """The token of ``layer``."""
        token = torch.zeros((), device=device).expand(shape).as_subclass(cls)
        token.layer = layer
        return token

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FUNCTIONS:
            return _run(*args, **kwargs) if func is F.linear else _run_convolution(func, *args, **kwargs)
        name = func.__name__
        if name == "__get__":
            name = func.__self__.__name__
            is_query = name in _ATTRIBUTES
        else:
            is_query = name in _METHODS
        if not is_query:
            raise TypeError(f"{name} reads the weight of a layer that becomes int8{_ADVICE}")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def _run(input: Tensor, weight: WeightToken, bias: Tensor | None = None) -> Tensor:
    return weight.layer.run_with_bias(input, bias)


def _run_convolution(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    bound = _CONVOLUTION.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = bound.arguments
    conv: Any = arguments["weight"].layer
    dims = len(conv.kernel_size)
    for name in ("stride", "padding", "dilation"):
        value = arguments[name]
        if getattr(conv, name) not in (
            value,
            tuple([value] * dims),
            tuple(value) if isinstance(value, list) else value,
        ):
            raise TypeError(f"{func.__name__} has another {name} than the layer whose weight it reads{_ADVICE}")
    if conv.groups != arguments["groups"]:
        raise TypeError(f"{func.__name__} has other groups than the layer whose weight it reads{_ADVICE}")
    return _run(arguments["input"], arguments["weight"], arguments["bias"])


def _convolution(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> None:
    """The arguments of a convolution."""


_CONVOLUTION = inspect.signature(_convolution)
_FUNCTIONS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
