"""Faster equivalents of two slow functions of torch, for the tests only."""

import copy
import functools
import importlib
import types
from typing import Any

import numpy as np
import pytest
import torch

__all__ = ["cache_onnx_registry", "speed_up_range_search"]


def cache_onnx_registry(patch: pytest.MonkeyPatch) -> None:
    """Read onnxscript's operators once: torch parses their source at each export, longer than a small model takes."""
    try:
        registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        plain = registry.from_torchlib
    except (AttributeError, ImportError):  # another version of torch: exports are slower, but equal
        return

    @functools.cache
    def read(has_int8: bool, **options: int) -> Any:
        return plain(**options)

    def from_torchlib(**options: int) -> object:
        # A registry holds the operators that torch has when it is read; those of int8 come with torchao.
        result = copy.copy(read(hasattr(torch.ops.quantized_decomposed, "dequantize_per_channel"), **options))
        result.functions = {target: list(functions) for target, functions in result.functions.items()}
        return result

    patch.setattr(registry, "from_torchlib", staticmethod(from_torchlib))


class _TorchWithArrays:
    """``torch``, except that ``cumsum`` returns an array: comparisons of its items are equal, and 50 times faster."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def cumsum(input: torch.Tensor, dim: int) -> np.ndarray:
        return torch.cumsum(input, dim).numpy()


def _without_tensor_comparisons(search: types.FunctionType) -> types.FunctionType:
    fast = types.FunctionType(search.__code__, {**search.__globals__, "torch": _TorchWithArrays()}, search.__name__)
    return functools.wraps(search)(fast)


def speed_up_range_search(patch: pytest.MonkeyPatch) -> None:
    """Speed up the search for the range of a histogram, which takes half of the time of calibration."""
    if int(np.__version__.split(".")[0]) < 2:  # earlier versions compare float32 with Python numbers in float64
        return
    for module in ("torch.ao.quantization.observer", "torchao.quantization.pt2e.observer"):
        try:
            observer = importlib.import_module(module).HistogramObserver
            patch.setattr(
                observer, "_non_linear_param_search", _without_tensor_comparisons(observer._non_linear_param_search)
            )
        except (AttributeError, ImportError):
            continue
