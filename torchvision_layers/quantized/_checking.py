"""Checks on models that both engines make."""

import torch
from torch import Tensor, nn

__all__ = ["check_float32", "check_module", "check_same_results"]


def check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {model!r}")


def check_float32(model: nn.Module) -> None:
    for path, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise TypeError(f"model must be float32 to be quantized, {path} is {parameter.dtype}")


def check_same_results(got: Tensor, expected: Tensor, otherwise: str) -> None:
    """Raises ``RuntimeError`` with the text ``otherwise`` where an engine changed what the float model computes."""
    if not bool(torch.isfinite(expected).all()):
        raise ValueError("model must give finite outputs, for the first batch it gives NaN or infinity")
    scale = float(expected.abs().max()) + 1e-6
    if got.shape != expected.shape or float((got - expected).abs().max()) > 1e-3 * scale:
        raise RuntimeError(otherwise)
