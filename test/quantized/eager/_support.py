"""A model whose int8 containers are flattened, and helpers that show whether they run so."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.quantized.eager.flat_sequential import FlatSequential

__all__ = ["X", "float_model", "is_flat", "record_calls", "run_unflattened"]

X = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def float_model() -> nn.Sequential:
    return nn.Sequential(
        tnn.ConvNormAct(3, 8, stride=2, activation_layer=nn.Hardswish),
        nn.Sequential(tnn.BasicBlock(8, 8, se_layer=tnn.SqueezeExcitation), tnn.InvertedResidual(8, 8, 1, 2)),
        tnn.MBConv(8, 8, expand_ratio=2, stochastic_depth=0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        tnn.LinearDropoutAct(8, 6, dropout=0.1),
        nn.Linear(6, 4),
    ).eval()


def run_unflattened(module: nn.Module, x: Tensor) -> Tensor:
    """Run the module with every flattened Sequential calling its children one by one, as ``nn.Sequential`` does."""
    flat = [m for m in module.modules() if type(m) is FlatSequential]
    for m in flat:
        m.__class__ = nn.Sequential
    try:
        return module(x)
    finally:
        for m in flat:
            m.__class__ = FlatSequential


@contextmanager
def record_calls(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Record the modules within ``module`` whose ``__call__`` runs inside the ``with`` block."""
    calls: list[nn.Module] = []
    descendants = set(module.modules())

    def recorded_call(self: nn.Module, *args: object, **kwargs: object) -> object:
        if self in descendants:
            calls.append(self)
        return original(self, *args, **kwargs)

    original = nn.Module.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__call__", recorded_call)
        yield calls


def is_flat(model: quantized.QuantizableModel, x: Tensor = X) -> bool:
    """Whether no block of the model is called as a module."""
    layers = (tnn.ConvNormAct, tnn.BasicBlock, tnn.InvertedResidual, tnn.MBConv)
    with record_calls(model) as calls:
        model(x)
    return not any(isinstance(module, layers) for module in calls)
