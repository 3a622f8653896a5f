"""Checks on models that both engines make."""

import torch
from torch import Tensor, nn

__all__ = ["check_float32_parameters", "check_same_results"]


def check_float32_parameters(model: nn.Module) -> None:
    """Raises ``TypeError`` with the path of a parameter that is not float32."""
    for path, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise TypeError(f"model must be float32 to be quantized, {path} is {parameter.dtype}")


def check_same_results(output: Tensor, expected: Tensor, message: str) -> None:
    """Raises ``RuntimeError`` with ``message`` if an engine changed what the float model computes."""
    if not bool(torch.isfinite(expected).all()):
        raise ValueError("model must give finite outputs, for the first batch it gives NaN or infinity")
    scale = float(expected.abs().max()) + 1e-6
    if output.shape != expected.shape or float((output - expected).abs().max()) > 1e-3 * scale:
        raise RuntimeError(message)
