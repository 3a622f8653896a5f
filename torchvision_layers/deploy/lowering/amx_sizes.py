"""Convolutions of lowered programs that run in float32 for the sizes at which oneDNN's kernels on AMX are wrong."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ..._utils.amx import Geometry, is_right, uses_amx
from .int8_kernels import dequantize, quantize, quantized_conv_sum, rounded_sum
from .kernels import conv1d, conv_sum

__all__ = ["checking_sizes"]

_mkldnn, _onednn = torch.ops.mkldnn, torch.ops.onednn
#: The places of weight, stride, padding, dilation and groups among the arguments.
_INT8, _FLOAT, _FLOAT_SUM = (3, 7, 8, 9, 10), (1, 4, 3, 5, 6), (2, 5, 4, 6, 7)


def checking_sizes(operator: Callable[..., Any]) -> Callable[..., Any]:
    """``operator``, or a function that calls it where it is right, if it may be wrong at some sizes."""
    places = _places().get(operator) if uses_amx() else None
    return operator if places is None else partial(_call, operator, itemgetter(*places))


@cache
def _places() -> dict[Callable[..., Any], tuple[int, ...]]:
    places: dict[Callable[..., Any], tuple[int, ...]] = {
        quantized_conv_sum: _INT8,
        conv1d: _FLOAT,
        conv_sum: _FLOAT_SUM,
    }
    if hasattr(_mkldnn, "_convolution_pointwise"):
        places[_mkldnn._convolution_pointwise.default] = _FLOAT
    for name in ("qconv1d_pointwise", "qconv2d_pointwise", "qconv3d_pointwise"):
        if hasattr(_onednn, name):
            places[getattr(_onednn, name).default] = _INT8
    return places


def _call(operator: Callable[..., Any], get: Callable[[Sequence[Any]], tuple[Any, ...]], *args: Any) -> Any:
    input = args[0]
    if input.dtype == torch.float32 or torch.compiler.is_compiling() or _is_right(input, *get(args)):
        return operator(*args)
    return _bfloat16_in_float32(operator, args) if input.dtype == torch.bfloat16 else _int8_in_float32(args)


def _is_right(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    shape = tuple(input.shape)
    if len(stride) == input.dim() - 1:  # of a sequence, as an image with a height of 1
        shape = (*shape[:2], 1, *shape[2:])
    kernel = tuple(weight.shape)[-len(stride) :]
    sizes = (tuple(stride), tuple(padding), tuple(dilation), groups)
    return is_right(Geometry(shape[1], weight.shape[0], kernel, *sizes), shape, input.dtype)


def _bfloat16_in_float32(operator: Callable[..., Tensor], args: tuple[Any, ...]) -> Tensor:
    return operator(*map(_to_float32, args)).bfloat16()


def _to_float32(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to_dense(torch.float32) if value.is_mkldnn else value.float()


def _int8_in_float32(args: tuple[Any, ...]) -> Tensor:
    input, scale, zero_point, weight, scales, _, bias, stride, padding, dilation, groups, *rest = args
    is_sum = isinstance(rest[3], Tensor)
    output_scale, output_zero_point = rest[:2]
    post_op: tuple[Any, ...] = ("none", [], "") if is_sum else tuple(rest[3:])
    weight = weight.to_dense().float() * scales.view(-1, *[1] * (weight.dim() - 1))
    images = dequantize(input, scale, zero_point)
    if len(stride) == 1:
        output = conv1d(images, weight, bias, [0, *padding], [1, *stride], [1, *dilation], groups, *post_op)
    else:
        output = _mkldnn._convolution_pointwise.default(
            images, weight, bias, padding, stride, dilation, groups, *post_op
        )
    if is_sum:
        other, other_scale, other_zero_point, name, _ = rest[3:]
        return rounded_sum(output, other, other_scale, other_zero_point, name, output_scale, output_zero_point)
    return quantize(output, output_scale, output_zero_point, 0, 255, rest[2]) if rest[2] == torch.uint8 else output
