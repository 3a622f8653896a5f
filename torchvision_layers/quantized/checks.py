"""Checks on models that both engines make."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from .._utils.inputs import Inputs
from .._utils.structure import flatten

__all__ = ["check_float32_parameters", "check_same_results", "first_of"]


def first_of(batches: Iterator[Inputs]) -> Inputs:
    """The first of ``batches``; raises ``ValueError`` if there is none."""
    first = next(batches, None)
    if first is None:
        raise ValueError("batches must hold at least one batch, got none")
    return first


def check_float32_parameters(model: nn.Module) -> None:
    """Raises unless each parameter is float32 and has values: ``TypeError`` or ``ValueError`` with its path."""
    for path, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"model must hold its weights to be quantized, {path} is on the meta device: call "
                "model.to_empty(device='cpu') and load a state_dict"
            )
    for path, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise TypeError(f"model must be float32 to be quantized, {path} is {parameter.dtype}")


def check_same_results(output: Any, expected: Any, message: str) -> None:
    """Raises ``RuntimeError`` with ``message`` if an engine changed what the float model computes."""
    (tensors, template), (expected_tensors, expected_template) = flatten(output), flatten(expected)
    if not expected_tensors:
        raise TypeError(f"model must return at least one tensor, it returns {_describe(expected)}")
    if template != expected_template:
        raise RuntimeError(message)
    for tensor, original in zip(tensors, expected_tensors, strict=True):
        if not bool(torch.isfinite(original).all()):
            raise ValueError("model must give finite outputs, for the first batch it gives NaN or infinity")
        if tensor.shape != original.shape or tensor.dtype != original.dtype:
            raise RuntimeError(message)
        if not original.is_floating_point() and not original.is_complex():  # rounding may change an index or a mask
            is_same = not original.numel() or float((tensor == original).double().mean()) >= 0.99
        else:
            is_same = not original.numel() or float((tensor - original).abs().max()) <= 1e-3 * (
                float(original.abs().max()) + 1e-6
            )
        if not is_same:
            raise RuntimeError(message)


def _describe(output: object) -> str:
    return "None" if output is None else f"a {type(output).__name__} without any"
