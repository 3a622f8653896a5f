"""Sums, products and concatenations of int8 tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..._utils.checks import check_same_shape
from ..._utils.data_flow import CONCATENATION_OPS
from ..._utils.structure import flatten
from .int8_modules import Int8Module

__all__ = ["Int8Addition", "Int8AdditionOnQnnpack", "Int8Concatenation", "Int8Multiplication", "NoMixedScales"]


class Int8Addition(Int8Module):
    """The int8 form of :class:`Addition`."""

    def __init__(self, scale: float, zero_point: int, relu: bool, broadcasts: bool) -> None:
        super().__init__(scale, zero_point)
        self.relu = relu
        self.broadcasts = broadcasts

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        if not self.broadcasts:
            check_same_shape("input", input, other, "other")
        elif input.shape != other.shape:
            input, other = torch.broadcast_tensors(input, other)
        return self._add(input, other)

    def _add(self, input: Tensor, other: Tensor) -> Tensor:
        if self.relu:
            return torch.ops.quantized.add_relu(input, other, self.scale, self.zero_point)
        return torch.ops.quantized.add(input, other, self.scale, self.zero_point)


class Int8AdditionOnQnnpack(Int8Addition):
    """Adds in float, and rounds once, if the steps of the inputs differ from that of the sum too much for qnnpack."""

    def _add(self, input: Tensor, other: Tensor) -> Tensor:
        ratios = [input.q_scale() / self.scale, other.q_scale() / self.scale]
        if min(ratios) < 2.0**-14 or max(ratios) > 255.0:
            total = input.dequantize() + other.dequantize()
            total = total.relu() if self.relu else total
            return torch.quantize_per_tensor(total, self.scale, self.zero_point, torch.quint8)
        if self.relu:
            return torch.ops.quantized.add_relu(input, other, self.scale, self.zero_point)
        return torch.ops.quantized.add(input, other, self.scale, self.zero_point)


class Int8Concatenation(Int8Module):
    """The int8 form of :class:`Concatenation`."""

    def __init__(self, scale: float, zero_point: int, dim: int) -> None:
        super().__init__(scale, zero_point)
        self.dim = dim

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return torch.ops.quantized.cat(inputs, self.dim, self.scale, self.zero_point)


class Int8Multiplication(Int8Module):
    """The int8 form of :class:`Multiplication`."""

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        return torch.ops.quantized.mul(input, other, self.scale, self.zero_point)


class NoMixedScales(TorchFunctionMode):
    """Rejects operations that tracing did not find, and that would give one int8 tensor the scale of another."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in CONCATENATION_OPS and any(tensor.is_quantized for tensor in flatten((args, kwargs))[0]):
            raise TypeError("it concatenates int8 tensors, which would take the scale of the first")
        if func is Tensor.__setitem__ and isinstance(args[2], Tensor) and args[2].is_quantized:
            raise TypeError("it assigns to a part of an int8 tensor, whose scale is another")
        return func(*args, **(kwargs or {}))
