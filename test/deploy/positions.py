"""What the tests of the convolution with a map of positions share."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers.experimental import nn as enn
from torchvision_layers.layers.positional_conv import PositionalConv2d

__all__ = ["IMAGES", "assert_up_to_date", "coord_conv", "folded"]

IMAGES = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(0))


def coord_conv(**arguments: Any) -> enn.CoordConv2d:
    return enn.CoordConv2d(4, 8, **{"kernel_size": 3, "padding": 1, **arguments})


def folded(layer: nn.Module) -> PositionalConv2d:
    made = deploy.fold(layer)
    assert type(made) is PositionalConv2d
    return made


def assert_up_to_date(layer: PositionalConv2d, x: Tensor) -> None:
    """Whatever it keeps, it gives what a copy gives, which keeps nothing."""
    fresh = copy.deepcopy(layer)
    assert not fresh.position._cache
    with torch.no_grad():
        assert torch.equal(layer(x), fresh(x))
        assert torch.equal(layer(x), fresh(x))
