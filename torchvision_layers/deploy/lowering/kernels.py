"""Operators of lowered programs that take more than one call of torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "add_in_place",
    "check_onednn",
    "conv1d",
    "conv_shape",
    "conv_sum",
    "is_channels_last",
    "linear_sum",
    "multiply_in_place",
    "to_channels_last",
]

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def check_onednn() -> None:
    """Errors: ``RuntimeError`` if torch has no operators of oneDNN."""
    names = ("_convolution_pointwise", "_linear_pointwise", "_reorder_convolution_weight", "_reorder_linear_weight")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        raise RuntimeError(
            "lowered models need the operators of oneDNN, which this build of torch lacks: run deploy.fold(model), or "
            "a file of deploy.export(model, example, path, format='onnx') or 'executorch'"
        )


def to_channels_last(input: Tensor) -> Tensor:
    """``input``, or a copy, whose strides are those of channels_last."""
    output = input.contiguous(memory_format=_FORMATS[input.dim()])
    if output.shape[1] == 1 and output.stride(1) != 1:
        # Without this, torch takes images of one channel for contiguous ones.
        strides = [*output.stride()]
        strides[1] = 1
        output = output.as_strided(output.shape, strides, output.storage_offset())
    return output


def is_channels_last(input: Tensor) -> bool:
    """Whether :func:`to_channels_last` has nothing to do."""
    is_dense = input.is_contiguous(memory_format=_FORMATS[input.dim()])
    return is_dense and (input.shape[1] > 1 or input.stride(1) == 1)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    post_op: str,
    scalars: Sequence[float],
    algorithm: str,
) -> Tensor:
    """A convolution of sequences, as one of images with a height of 1, which ``weight`` is for."""
    output = torch.ops.mkldnn._convolution_pointwise.default(
        input.unsqueeze(2), weight, bias, padding, stride, dilation, groups, post_op, scalars, algorithm
    )
    return output.squeeze(2)


def conv_shape(
    input: Tensor, kernel: Sequence[int], padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The shape of the result of a convolution; ``kernel`` holds the number of filters and the sizes of the kernel."""
    dims = zip(input.shape[2:], kernel[1:], padding, stride, dilation, strict=True)
    return [input.shape[0], kernel[0], *((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, p, s, d in dims)]


def conv_sum(
    input: Tensor,
    other: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel: Sequence[int],
    post_op: str | None,
    in_place: bool,
) -> Tensor:
    """The sum of a convolution and ``other``, written into ``other`` with ``in_place``.

    Args:
        kernel: number of filters, and sizes of the kernel.
    """
    sizes = conv_shape(input, kernel, padding, stride, dilation)
    # oneDNN does not broadcast like torch, nor does it check; with torch 2.11 it cannot add to a single pixel. An
    # exported program must not look for that: it would refuse all sizes that decide otherwise than the example.
    if list(other.shape) != sizes or (not torch.compiler.is_exporting() and max(sizes[2:]) == 1):
        output = torch.ops.mkldnn._convolution_pointwise.default(
            input, weight, bias, padding, stride, dilation, groups, "none", [], ""
        )
        output = output + other
        return output if post_op is None else output.relu_()
    if in_place:
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other, input, weight, bias, padding, stride, dilation, groups, "add", None, post_op, [], None
        )
    return torch.ops.mkldnn._convolution_pointwise.binary(
        input, other, weight, bias, padding, stride, dilation, groups, "add", None, post_op, [], None
    )


def linear_sum(input: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, features: int) -> Tensor:
    """The sum of a linear layer with so many output features and ``other``."""
    if list(other.shape) != [*input.shape[:-1], features]:
        return torch.ops.mkldnn._linear_pointwise.default(input, weight, bias, "none", [], "") + other
    return torch.ops.mkldnn._linear_pointwise.binary(input, other, weight, bias, "add")


def add_in_place(input: Tensor, other: Tensor) -> Tensor:
    """The sum of both, written into ``input`` if it has the shape."""
    return input.add_(other) if _expands_to(other, input) else input + other


def multiply_in_place(input: Tensor, other: Tensor) -> Tensor:
    """The product of both, written into ``input`` if it has the shape."""
    return input.mul_(other) if _expands_to(other, input) else input * other


def _expands_to(other: Tensor, input: Tensor) -> bool:
    sizes = zip(other.shape[::-1], input.shape[::-1], strict=False)
    return other.dim() <= input.dim() and all(n in (size, 1) for n, size in sizes)
