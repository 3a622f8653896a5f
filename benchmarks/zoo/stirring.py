"""Weights and statistics like those of a trained model, from a seed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["stir"]


@torch.no_grad()
def stir(model: nn.Module, batch: Tensor, generator: torch.Generator) -> None:
    """Draws gains, shifts and statistics of norms, in place.

    Running statistics are measured on ``batch`` and then changed a little, so that activations keep their size through
    a deep model. Gains of branches and heads that begin at zero are drawn too, because the output would not depend on
    the modules behind them.
    """
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and parameter.min() == parameter.max() and parameter.abs().max() < 1e-3:
            if parameter.dim() < 2:
                parameter.copy_(0.2 + 0.6 * torch.rand(parameter.shape, generator=generator))
            else:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    norms = list(_norms(model))
    for norm in norms:
        for tensor, spread, middle in ((norm.weight, 0.3, 1.0), (norm.bias, 0.1, 0.0)):
            if tensor is not None:
                tensor.copy_(middle + spread * torch.randn(tensor.shape, generator=generator))
    measured = [norm for norm in norms if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in measured]
    for norm in measured:
        norm.momentum = 1.0
        norm.train()
    model(batch)
    for norm, momentum in zip(measured, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    for norm in norms:
        shape = norm.running_mean.shape
        norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn(shape, generator=generator))
        norm.running_var.mul_(0.8 + 0.4 * torch.rand(shape, generator=generator))


def _norms(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(getattr(module, "running_mean", None), Tensor))
