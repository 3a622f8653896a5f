"""An int8 model that runs as a straight line, and ways to see that it does."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.quantized.eager.flat_sequential import FlatSequential

__all__ = ["X", "body", "called", "is_flat", "one_by_one"]

X = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def body() -> nn.Sequential:
    return nn.Sequential(
        tnn.ConvNormAct(3, 8, stride=2, activation_layer=nn.Hardswish),
        nn.Sequential(tnn.BasicBlock(8, 8, se_layer=tnn.SqueezeExcitation), tnn.InvertedResidual(8, 8, 1, 2)),
        tnn.MBConv(8, 8, expand_ratio=2, stochastic_depth=0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        tnn.LinearDropoutAct(8, 6, dropout=0.1),
        nn.Linear(6, 4),
    ).eval()


def one_by_one(module: nn.Module, x: Tensor) -> Tensor:
    """What the modules give when each calls its children as plain torch does."""
    straight = [m for m in module.modules() if type(m) is FlatSequential]
    for m in straight:
        m.__class__ = nn.Sequential
    try:
        return module(x)
    finally:
        for m in straight:
            m.__class__ = FlatSequential


@contextmanager
def called(module: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules below ``module`` that are called as modules meanwhile."""
    seen: list[nn.Module] = []
    inside = set(module.modules())

    def count(self: nn.Module, *args: object, **kwargs: object) -> object:
        if self in inside:
            seen.append(self)
        return plain(self, *args, **kwargs)

    plain = nn.Module.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__call__", count)
        yield seen


def is_flat(model: quantized.QuantizableModel, x: Tensor = X) -> bool:
    """Whether the blocks of the model are not called as modules."""
    layers = (tnn.ConvNormAct, tnn.BasicBlock, tnn.InvertedResidual, tnn.MBConv)
    with called(model) as seen:
        model(x)
    return not any(isinstance(module, layers) for module in seen)
