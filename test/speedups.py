"""A faster equivalent of a slow function of torch, for the tests only."""

import copy
import functools
import importlib
from typing import Any

import pytest
import torch

__all__ = ["cache_onnx_registry"]


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
