"""Products with constants, which fold into the layer before them only if nothing else reads it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .._support import FunctionModule
from ._support import assert_lowers, images

FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "per channel": (lambda m, x: m.conv(x) * m.factor, (1, 4, 1, 1)),
    "per channel, without a batch": (lambda m, x: m.factor * m.conv(x), (4, 1, 1)),
    "one number": (lambda m, x: m.conv(x) * m.factor, ()),
    "per pixel": (lambda m, x: m.conv(x) * m.factor, (1, 1, 6, 7)),
    "per column": (lambda m, x: m.conv(x) * m.factor, (7,)),
    "per channel and row": (lambda m, x: m.conv(x) * m.factor, (4, 6, 1)),
    "more dimensions": (lambda m, x: m.conv(x) * m.factor, (2, 1, 4, 1, 1)),
    "read again": (lambda m, x: _read_again(m.conv(x), m.factor), (1, 4, 1, 1)),
    "moved channels": (lambda m, x: m.conv(x).permute(0, 2, 3, 1) * m.factor, (4,)),
    "moved channels, per column": (lambda m, x: m.conv(x).permute(0, 2, 3, 1) * m.factor, (7, 1)),
    "square": (lambda m, x: m.conv(x) * m.conv(x), ()),
}


def _read_again(y: Tensor, factor: Tensor) -> Tensor:
    return y * factor + y.sigmoid()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_with_constants(name: str) -> None:
    torch.manual_seed(0)
    function, shape = FUNCTIONS[name]
    model: Any = FunctionModule(function, conv=nn.Conv2d(3, 4, 3, padding=1))
    model.register_parameter("factor", nn.Parameter(images(1, *shape, seed=1)[0] + 2))
    lowered = assert_lowers(model, images(2, 3, 6, 7))
    is_folded = name.startswith(("per channel", "one number", "moved channels")) and not name.endswith(
        ("row", "column")
    )
    assert ("mul" in repr(lowered)) is not is_folded
