"""Operators of lowered int8 programs that take more than one call of torch."""

from collections.abc import Callable, Sequence
from functools import cache, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import conv_shape

__all__ = [
    "check_exact_products",
    "dequantize",
    "quantize",
    "quantize_affine",
    "quantized_conv_sum",
    "quantized_max_pool",
    "rounded_sum",
]

#: Values for each thread that are rounded in one go. More do not stay in its cache from one operator to the next.
_BLOCK = 2**17
_OPERATORS = ("qconv_prepack", "qconv2d_pointwise", "qlinear_prepack", "qlinear_pointwise")


def check_exact_products() -> None:
    """Errors: ``RuntimeError`` if torch has no operators of oneDNN for integers, or if they overflow on this CPU.

    Products of integers overflow on x86 without VNNI.
    """
    try:
        is_exact = _has_exact_products() if all(hasattr(torch.ops.onednn, name) for name in _OPERATORS) else None
    except RuntimeError:  # there are kernels for some processors only
        is_exact = None
    if is_exact is None:
        raise RuntimeError(
            "lowered int8 models need the operators of oneDNN for integers, which torch lacks here: lower the float "
            "model, or run a file of deploy.export(model, example, path, format='onnx-qdq') or 'executorch'"
        )
    if not is_exact:
        raise RuntimeError(
            "lowered int8 models need a CPU that adds products of integers in 32 bits, such as x86 with VNNI; here "
            "they overflow: lower the float model, or call quantized.quantize(model, batches, backend='x86')"
        )


@cache
def _has_exact_products() -> bool:
    image = torch.full((1, 64, 4, 4), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight, scales, zeros = torch.full((64, 64, 1, 1), 127, dtype=torch.int8), torch.ones(64), torch.zeros(64).long()
    geometry = [1, 1], [0, 0], [1, 1], 1
    packed = torch.ops.onednn.qconv_prepack(weight, scales, 1.0, 0, *geometry, [1, 64, 4, 4])
    layer = (image, 1.0, 0, packed, scales, zeros, None)
    output = torch.ops.onednn.qconv2d_pointwise.default(*layer, *geometry, 1.0, 0, torch.float32, "none", [], "")
    return bool((output == 255 * 127 * 64).all())


def quantize(input: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """``input`` in steps of ``scale``, rounded half to even."""
    offset = zero_point - _shift(dtype)

    def steps(values: Tensor) -> Tensor:
        rounded = values.mul(1.0 / scale).round_()
        return rounded.add_(offset) if offset else rounded

    if input.is_contiguous() or input.dim() < 3 or not _is_large(input):
        return _rounded(input, steps, low, high, dtype)
    return _rounded(input.movedim(1, -1), steps, low, high, dtype).movedim(-1, 1)


def quantize_affine(
    input: Tensor,
    offset: Tensor,
    factor: Tensor,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> Tensor:
    """``offset + factor * input`` in steps of ``scale``. Both have a number for each channel."""
    factor, offset = factor.flatten() / scale, offset.flatten() / scale + (zero_point - _shift(dtype))

    def steps(values: Tensor) -> Tensor:
        return torch.addcmul(offset, values, factor).round_()

    return _rounded(input.movedim(1, -1), steps, low, high, dtype).movedim(-1, 1)


def _shift(dtype: torch.dtype) -> int:
    """The summand after a conversion to int8: torch converts floats several times as fast to it as to uint8."""
    return 128 if dtype == torch.uint8 else 0


def _rounded(values: Tensor, steps: Callable[[Tensor], Tensor], low: int, high: int, dtype: torch.dtype) -> Tensor:
    """The integers between ``low`` and ``high`` that ``steps`` makes of values with channels last, less the shift.

    Large tensors are rounded in blocks.
    """
    shift = _shift(dtype)
    low, high = low - shift, high - shift
    if not _is_large(values) or not values.is_contiguous():
        integers = steps(values).clamp_(low, high).to(torch.int8 if shift else dtype)
    else:
        integers = torch.empty_like(values, dtype=torch.int8 if shift else dtype)
        rows, results = (tensor.view(-1, values.shape[-1]) for tensor in (values, integers))
        length = max(_BLOCK * torch.get_num_threads() // values.shape[-1], 1)
        for block, result in zip(rows.split(length), results.split(length), strict=True):
            result.copy_(steps(block).clamp_(low, high))
    return integers.view(torch.uint8).bitwise_xor_(128) if shift else integers


def _is_large(values: Tensor) -> bool:
    """Whether blocks are faster. Programs that are exported cannot depend on it."""
    return not torch.compiler.is_compiling() and values.numel() > 4 * _BLOCK * torch.get_num_threads()


def dequantize(input: Tensor, scale: float, zero_point: int) -> Tensor:
    """The inverse of :func:`quantize`, without rounding."""
    return input * scale if zero_point == 0 else (input - float(zero_point)).mul_(scale)


def quantized_max_pool(input: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The maxima in windows of images of uint8, for which torch has no kernel.

    Args:
        kernel: sizes of the windows, at least 2.
    """
    output = F.pad(input, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else input
    for dim, size, step in zip((2, 3), kernel, stride, strict=True):
        length = output.shape[dim] - size + 1
        rows = (output.narrow(dim, i, length) for i in range(size))
        output = reduce(torch.maximum, (row[:, :, ::step] if dim == 2 else row[..., ::step] for row in rows))
    return output


def rounded_sum(
    output: Tensor,
    other: Tensor,
    other_scale: float,
    other_zero_point: int,
    post_op: str,
    scale: float,
    zero_point: int,
) -> Tensor:
    """The sum of a tensor in float and one of integers, with a ReLU unless ``post_op`` is ``"none"``, in steps."""
    output = output + dequantize(other, other_scale, other_zero_point)
    output = output if post_op == "none" else output.relu_()
    return quantize(output, scale, zero_point, 0, 255, torch.uint8)


def quantized_conv_sum(
    input: Tensor,
    scale: float,
    zero_point: int,
    weight: Tensor,
    weight_scales: Tensor,
    weight_zero_points: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    output_scale: float,
    output_zero_point: int,
    kernel: Sequence[int],
    other: Tensor,
    other_scale: float,
    other_zero_point: int,
    post_op: str,
    in_place: bool,
) -> Tensor:
    """The sum of a convolution in int8 and ``other``, which is overwritten with ``in_place``.

    Args:
        kernel: number of filters, and sizes of the kernel.
    """
    layer = (input, scale, zero_point, weight, weight_scales, weight_zero_points)
    geometry = (bias, stride, padding, dilation, groups)
    if list(other.shape) != conv_shape(input, kernel, padding, stride, dilation):  # oneDNN does not broadcast
        output = torch.ops.onednn.qconv2d_pointwise.default(*layer, *geometry, 1.0, 0, torch.float32, "none", [], "")
        return rounded_sum(output, other, other_scale, other_zero_point, post_op, output_scale, output_zero_point)
    total = other if in_place else other.clone()
    return torch.ops.onednn.qconv2d_pointwise.binary(
        *layer,
        total.contiguous(memory_format=torch.channels_last),
        *geometry,
        output_scale,
        output_zero_point,
        torch.uint8,
        other_scale,
        other_zero_point,
        "sum",
        1.0,
        post_op,
        [],
        "",
    )
