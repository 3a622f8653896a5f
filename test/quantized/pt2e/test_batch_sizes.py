"""Graphs for images of one size are exported with a constant batch if they hold for every batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized.pt2e.batch_sizes import export_constant_batch
from torchvision_layers.quantized.pt2e.export import export

from ._support import FunctionModule

X = torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))


def with_conv(function: Callable[[Tensor], object]) -> nn.Module:
    torch.manual_seed(0)
    return FunctionModule(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(3, 4, 3, padding=1)).eval()


def in_windows(y: Tensor) -> Tensor:
    """Windows of 2 x 2 as a batch, and back, as in Swin."""
    batch, channels, height, width = y.shape
    y = y.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
    windows = y.reshape(batch * (height // 2) * (width // 2), 4, channels)
    windows = windows.softmax(1).view(windows.size(0) // 12, 12, 4, channels)
    return windows.view(batch, height // 2, width // 2, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).reshape(y.shape[0], -1)


@pytest.mark.parametrize(
    "function",
    [
        in_windows,
        lambda y: y.view(y.size(0), -1),
        lambda y: torch.cat([y.new_ones(1, 4, 1, 1).expand(y.shape[0], -1, -1, -1), y[:, :, :1, :1]], 1),
        lambda y: torch.cat([y.new_zeros(len(y.shape) * y.shape[0], 1), y.mean((2, 3)).repeat(4, 1)[:, :1]]),
        lambda y: (y * y.shape[0], torch.zeros(y.shape[:2])),
        lambda y: y.flatten(1) if y.shape[0] > 0 and y.shape[:1] == y.mean(1).shape[:1] else y,
        lambda y: y.reshape(y.shape[0] * 2, -1).view(y.shape[0], -1),
        lambda y: y[0] + y[:, 1:3].flatten(2).sum(2)[:, :, None, None].sum(1, keepdim=True),
        lambda y: y.split(2, 1)[0],
        lambda y: y.view(y.numel() // y[:1].numel(), -1),
    ],
)
def test_batch_of_a_graph_is_variable(function: Callable[[Tensor], object]) -> None:
    model = with_conv(function)
    exported = export(model, Inputs((X,)), dynamic_sizes=False)
    graph = exported.graph_module
    assert not hasattr(graph, "_guards_fn")
    assert exported.signature.sizes == [(None, 3, 6, 8)]
    for x in (X, X[:1], torch.cat([X, X, X])):
        expected = model(x)
        expected = expected if isinstance(expected, tuple) else (expected,)
        torch.testing.assert_close(tuple(graph(x)), expected)
    for dims, value in zip(exported.batch_dims[1], expected, strict=True):
        assert all(value.shape[dim] % 12 == 0 for dim in dims)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y if y.shape[0] > 3 else -y,
        lambda y: y if y.size(0) != 8 else -y,
        lambda y: y if y.shape[0] % 32 else -y,
        lambda y: y if len(y) < 64 else -y,
        lambda y: y if int(y.shape[0]) < 64 else -y,
        lambda y: y if y.numel() < 64000 else -y,
        lambda y: y if y.shape.numel() < 64000 else -y,
        lambda y: y if y.shape[0] & 64 else -y,
        lambda y: y / y.shape[0],
        lambda y: y[: y.shape[0] // 2],
        lambda y: y[: y.shape[0] - 1],
        lambda y: y * min(y.shape[0], 8),
        lambda y: torch.stack([y[i] for i in range(y.shape[0])]),
        lambda y: torch.stack(list(y)),
        lambda y: torch.cat(y.split(32)),
        lambda y: torch.cat([y] * y.shape[0]),
        lambda y: (y, y.shape[0]),
        lambda y: y.mean((2, 3)).squeeze(),
        lambda y: y + F.pad(y.new_ones(1), (0, 96)).sum() / F.pad(y.new_ones(1), (0, 193)).numel(),
    ],
)
def test_other_uses_of_the_batch_are_not_taken(function: Callable[[Tensor], object]) -> None:
    """The export with a symbolic batch decides about them."""
    model = with_conv(function)
    model.forward = lambda x, forward=model.forward: _as_tuple(forward(x))  # type: ignore[misc]

    def export_and_compare() -> None:
        graph = export_constant_batch(model, (X[:2],), [True])
        torch.testing.assert_close(tuple(graph(X[:1])), model(X[:1]))

    with pytest.raises(Exception):  # noqa: B017, PT011  # of any type
        export_and_compare()


def _as_tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)
