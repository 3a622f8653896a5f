"""Convolutions on AMX, the matrix units of x86 CPUs, for which oneDNN's kernels are wrong at some sizes.

With oneDNN 3.10 to 3.13 they read memory that nothing has written, or write beyond theirs. No rule is known for the
sizes, so each is tried once on random values.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LIMIT", "Geometry", "has_vnni", "is_right", "may_be_wrong", "uses_amx", "without_amx"]

#: Limits on oneDNN's instructions that exclude VNNI and AMX, and those that exclude AMX only.
_WITHOUT_VNNI = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}
_WITHOUT_AMX = {"AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"}
_WITHOUT_AMX |= _WITHOUT_VNNI
_VARIABLE, _VALUE = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16"
#: A setting of the environment that excludes AMX, and nothing else on CPUs that have it.
LIMIT = f"{_VARIABLE}={_VALUE}"
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_ZERO_POINT = 100


def _limit() -> str:
    return os.environ.get(_VARIABLE, os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()


def has_vnni() -> bool:
    """Whether oneDNN adds products of integers without overflow: the CPU has VNNI, and no limit excludes it."""
    return torch.cpu._is_vnni_supported() and _limit() not in _WITHOUT_VNNI


def uses_amx() -> bool:
    """Whether oneDNN has kernels on AMX for this process."""
    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(is_supported()) and _limit() not in _WITHOUT_AMX


@contextmanager
def without_amx() -> Iterator[None]:
    """Excludes AMX for a library that looks at the limit within the context, which it does once in a process."""
    if not uses_amx():
        yield
        return
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = _VALUE
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before


class Geometry(NamedTuple):
    """The sizes of a convolution, with one number for each dimension of its images."""

    channels: int
    filters: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def may_be_wrong(geometry: Geometry) -> bool:
    """Whether kernels for inputs of some size may be wrong."""
    return not _is_depthwise(geometry) and (geometry.stride[-1] > 1 or not _is_plain(geometry))


def is_right(geometry: Geometry, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether oneDNN's convolution of inputs of ``shape`` is right.

    Args:
        dtype: ``torch.uint8`` for a convolution in int8, or ``torch.bfloat16``.
    """
    if _is_depthwise(geometry):
        return True
    if _leaves_one_column(geometry, shape) or (dtype == torch.uint8 and _may_write_beyond(geometry, shape)):
        return False
    return _is_plain(geometry) or 0 in shape or _passes(geometry, tuple(shape), dtype, torch.get_num_threads())


def _is_depthwise(geometry: Geometry) -> bool:
    """Whether no kernel on AMX computes it."""
    return geometry.groups == geometry.channels == geometry.filters > 1


def _is_plain(geometry: Geometry) -> bool:
    """Whether it is one of a kind that was right in 2,000 trials with more than one column."""
    kernel, stride = set(geometry.kernel), set(geometry.stride)
    is_square = len(geometry.kernel) == 2 and len(kernel) == len(stride) == 1 and {*geometry.dilation} == {1}
    return is_square and geometry.groups == 1 and max(kernel) <= 7 and max(stride) <= 2


def _leaves_one_column(geometry: Geometry, shape: tuple[int, ...]) -> bool:
    """Whether a stride leaves one column of several rows; what the kernel reads then may be right by chance."""
    *rows, columns = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(shape[2:], *geometry[2:6], strict=True)
    )
    return geometry.stride[-1] > 1 and columns == 1 and math.prod(rows) > 1


def _may_write_beyond(geometry: Geometry, shape: tuple[int, ...]) -> bool:
    """Whether an int8 kernel may write beyond its memory, which a trial would do, too.

    It was found for padded images of 24 columns and more, without a stride.
    """
    is_dense = 2 in geometry.dilation and max(geometry.stride) == 1
    return is_dense and geometry.padding[-1] > 0 and shape[-1] > 16


@lru_cache(maxsize=4096)
def _passes(geometry: Geometry, shape: tuple[int, ...], dtype: torch.dtype, threads: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    trial = _passes_int8 if dtype == torch.uint8 else _passes_bfloat16
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
        return trial(geometry, shape, generator)


def _passes_int8(geometry: Geometry, shape: tuple[int, ...], generator: torch.Generator) -> bool:
    input = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    weight = torch.randint(-127, 128, _weight_shape(geometry), generator=generator, dtype=torch.int8)
    expected = _convolution(input.float() - _ZERO_POINT, weight.float(), geometry)
    scale = float(expected.abs().max()) / 127 or 1.0
    expected = (expected / scale).round_() + 128
    sizes = ([*geometry.stride], [*geometry.padding], [*geometry.dilation], geometry.groups)
    scales, zeros = torch.ones(geometry.filters), torch.zeros(geometry.filters, dtype=torch.long)
    packed = torch.ops.onednn.qconv_prepack(weight, scales, 1.0, _ZERO_POINT, *sizes, [*shape])
    kernel = getattr(torch.ops.onednn, f"qconv{len(geometry.kernel)}d_pointwise").default
    layer = (_channels_last(input), 1.0, _ZERO_POINT, packed, scales, zeros, None)
    for _ in range(2):
        _fill_free_memory()
        output = kernel(*layer, *sizes, scale, 128, torch.uint8, "none", [], "")
        if float((output.float() - expected).abs().max()) > 1:
            return False
    return True


def _passes_bfloat16(geometry: Geometry, shape: tuple[int, ...], generator: torch.Generator) -> bool:
    input = torch.randn(shape, generator=generator).bfloat16()
    weight = torch.randn(_weight_shape(geometry), generator=generator).bfloat16()
    expected = _convolution(input.float(), weight.float(), geometry)
    for _ in range(2):
        _fill_free_memory()
        error = _convolution(_channels_last(input), weight, geometry).float() - expected
        if not float(error.abs().max()) <= 0.02 * float(expected.abs().max()):  # NaN is wrong, too
            return False
    return True


def _weight_shape(geometry: Geometry) -> tuple[int, ...]:
    return geometry.filters, geometry.channels // geometry.groups, *geometry.kernel


def _convolution(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    sizes = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    return _CONVOLUTIONS[len(geometry.kernel)](input, weight, None, *sizes)


def _channels_last(input: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return input.contiguous(memory_format=formats.get(input.dim(), torch.contiguous_format))


def _fill_free_memory() -> None:
    """Leaves values in memory that kernels may read without having written it: zeros would hide that."""
    blocks = [torch.full((2**size,), 1e4) for size in range(6, 19)]
    del blocks
