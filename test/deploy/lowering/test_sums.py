"""Residual sums inside of convolutions and linear layers, and tensors that are overwritten, read again or returned."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchvision_layers import deploy

from .._support import FunctionModule
from ._support import assert_agrees, assert_lowers, images

IN_PLACE, NEW = "_convolution_pointwise_.binary", "_convolution_pointwise.binary"


def model_of(function: Callable[..., Any], channels: int = 4) -> nn.Module:
    torch.manual_seed(0)
    convs = {name: nn.Conv2d(channels, channels, 3, padding=1) for name in "abc"}
    return FunctionModule(function, **convs, narrow=nn.Conv2d(channels, channels, 1), one=nn.Conv2d(channels, 1, 1))


def two_uses(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.a(x))
    z = self.b(y) + y
    return z * y.mean()


def returned_term(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = F.relu(self.a(x))
    return self.b(y) + y, y


def view_of_term(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.a(x))
    view = y[:, :2]
    return torch.cat([self.b(y) + y, view], 1)


def transposed_term(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = F.relu(self.a(x))
    view = y.transpose(2, 3)
    return self.b(y) + y, view.contiguous()


def term_is_a_view(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.cat([self.a(x), self.c(x)], 1)
    return self.b(x) + y[:, 2:6], y


def reshaped_term(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.a(x)
    return self.b(x) + y.flatten(2).reshape(y.shape), y


def conv_reads_the_term(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.a(x))
    return self.b(y).add_(y).relu_()


def term_read_between(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.a(x))
    z = self.b(y)
    w = self.c(y)
    return (z + y).relu() - w


def own_term(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return y + y


def chain(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    x = F.relu(x + self.b(x))
    x = self.c(x) + x
    return x + self.narrow(F.relu(x))


def both_convs(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.a(x) + self.narrow(x))


def scaled_sum(self: Any, x: Tensor) -> Tensor:
    return torch.add(self.a(x), self.b(x), alpha=2)


def sum_before_activation(self: Any, x: Tensor) -> Tensor:
    return F.silu(self.a(x) + x)


def relu_read_twice(self: Any, x: Tensor) -> Tensor:
    y = self.a(x) + self.b(x)
    return F.relu(y) + y


def conv_output_read_twice(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return (y + self.b(x)) * y


def dropout_of_term(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.a(x)
    return self.b(x) + F.dropout(y, 0.5, self.training), y


def same_type_of_term(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.a(x)
    return self.b(x) + y.type_as(x), y


CASES: dict[str, tuple[Callable[..., Any], str | None]] = {
    "dead": (lambda self, x: self.b(x) + F.relu(self.a(x)), IN_PLACE),
    "dead, other order": (lambda self, x: F.relu(self.a(x)) + self.b(x), IN_PLACE),
    "input of the model": (lambda self, x: F.relu(self.a(x) + x), NEW),
    "product with the term": (two_uses, NEW),
    "returned": (returned_term, NEW),
    "view is read": (view_of_term, NEW),
    "transposed view": (transposed_term, NEW),
    "view": (term_is_a_view, NEW),
    "reshaped": (reshaped_term, NEW),
    "conv reads it": (conv_reads_the_term, NEW),
    "read between": (term_read_between, NEW),
    "itself": (own_term, None),
    "chain": (chain, IN_PLACE),
    "both convs": (both_convs, IN_PLACE),
    "alpha": (scaled_sum, None),
    "other activation": (sum_before_activation, NEW),
    "relu read twice": (relu_read_twice, IN_PLACE),
    "conv read twice": (conv_output_read_twice, NEW),
    "dropout": (dropout_of_term, NEW),
    "type_as": (same_type_of_term, NEW),
}


@pytest.mark.parametrize(("function", "operator"), CASES.values(), ids=CASES)
def test_sums(function: Callable[..., Any], operator: str | None) -> None:
    lowered = assert_lowers(
        model_of(function), images(2, 4, 6, 6), others=[(images(1, 4, 5, 5),), (images(3, 4, 8, 8),)]
    )
    assert operator is None or operator in repr(lowered)
    if operator != IN_PLACE:
        assert IN_PLACE not in repr(lowered)


BROADCASTS: dict[str, Callable[..., Any]] = {
    "per channel": lambda self, x: self.a(x) + x.mean((2, 3), keepdim=True),
    "per image": lambda self, x: self.a(x) + x.mean((1, 2, 3), keepdim=True),
    "per pixel": lambda self, x: self.a(x) + x.mean(1, keepdim=True),
    "row": lambda self, x: F.relu(self.a(x) + x.mean(2, keepdim=True)),
    "batch": lambda self, x: self.a(x) + x[:1],
    "three dimensions": lambda self, x: self.a(x) + x[0],
    "number": lambda self, x: self.a(x) + 1.5,
    "constant": lambda self, x: self.a(x) + torch.ones(4, 1, 1),
    "conv is smaller": lambda self, x: F.relu(self.narrow(x.mean((2, 3), keepdim=True)) + x),
    "conv of one channel": lambda self, x: self.one(x) + F.relu(x),
    "integers": lambda self, x: self.a(x) + (x > 0).long(),
}


@pytest.mark.parametrize("function", BROADCASTS.values(), ids=BROADCASTS)
def test_broadcast_sums(function: Callable[..., Any]) -> None:
    others = [(images(1, 4, 5, 7),), (images(3, 4, 1, 1),), (images(2, 4, 1, 6),), (images(1, 4, 1, 1),)]
    assert_lowers(model_of(function), images(2, 4, 6, 6), others=others)
    assert_lowers(model_of(function), images(2, 4, 1, 1), others=[(images(2, 4, 6, 6),)])


def test_inputs_in_channels_last_are_not_written_to() -> None:
    """They need no conversion, so that the sum would overwrite the caller's tensor."""
    torch.manual_seed(0)
    model = model_of(lambda self, x: self.b(F.relu(self.a(x))) + x)
    lowered = deploy.lower(model, images(2, 4, 6, 6))
    for x in (images(2, 4, 6, 6), images(2, 4, 1, 1)):
        assert_agrees(lowered, model, x.contiguous(memory_format=torch.channels_last))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(self.conv(x) + y)


def test_sizes_of_inputs_that_differ() -> None:
    """oneDNN's sum does not check sizes."""
    torch.manual_seed(0)
    model = Two().eval()
    lowered = deploy.lower(model, (images(2, 4, 6, 6), images(2, 4, 6, 6)))
    for shape in ((2, 4, 6, 7), (2, 4, 5, 6), (2, 3, 6, 6)):
        with pytest.raises((RuntimeError, ValueError)):
            lowered(images(2, 4, 6, 6), images(*shape))
    assert_agrees(lowered, model, images(1, 4, 6, 6), images(1, 4, 6, 6))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "expanded", "offset"])
def test_layouts_of_inputs(layout: str) -> None:
    torch.manual_seed(0)
    model = Two().eval()
    lowered = deploy.lower(model, (images(2, 4, 6, 6), images(2, 4, 6, 6)))
    for x in (images(3, 4, 6, 6), images(1, 4, 6, 6)):
        y = {
            "contiguous": x.flip(0),
            "channels_last": x.contiguous(memory_format=torch.channels_last),
            "strided": images(len(x), 4, 6, 12)[..., ::2],
            "expanded": x[:, :, :1].expand_as(x),
            "offset": images(len(x) + 1, 4, 6, 6)[1:],
        }[layout]
        assert_agrees(lowered, model, x, y)
        assert_agrees(lowered, model, y, x)


LINEAR_SUMS: dict[str, Callable[..., Any]] = {
    "residual": lambda self, x: self.up(x) + x,
    "other order": lambda self, x: x + self.up(x),
    "relu": lambda self, x: F.relu(self.up(x) + x),
    "row": lambda self, x: self.up(x) + x[:1],
    "vector": lambda self, x: self.up(x) + x[0, 0],
    "transposed": lambda self, x: self.up(x).transpose(0, 1) + x.transpose(0, 1),
    "permuted": lambda self, x: self.up(x).permute(2, 0, -2) + x.permute(2, 0, 1),
    "permuted, broadcast": lambda self, x: self.up(x).permute(2, 0, 1) + x.permute(2, 0, 1)[:, :1],
    "scaled": lambda self, x: self.up(x) * self.up.bias + x,
    "scaled before a permutation": lambda self, x: self.up(x).permute(2, 0, 1) * self.up.bias[:, None, None],
    "scaled in another dimension": lambda self, x: self.up(x).permute(0, 2, 1) * torch.arange(5.0),
    "itself": lambda self, x: (lambda y: y + y)(self.up(x)),
}


@pytest.mark.parametrize("function", LINEAR_SUMS.values(), ids=LINEAR_SUMS)
def test_linear_sums(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = FunctionModule(function, up=nn.Linear(256, 256))
    assert_lowers(model, images(2, 5, 256), others=[(images(3, 5, 256),), (images(1, 5, 256),)])


WRITES: dict[str, Callable[..., Any]] = {
    "slice": lambda self, x: (lambda y: (y[:, :2].zero_(), self.b(y))[1])(self.a(x)),
    "slice of a sum": lambda self, x: (lambda y: (y[:, :2].mul_(2), self.b(x) + y)[1])(self.a(x)),
    "after a read": lambda self, x: (lambda y, z: (y.add_(1), z + y)[1])(*(lambda y: (y, self.b(y)))(self.a(x))),
    "mask": lambda self, x: (lambda y: (y.masked_fill_(y < 0, -1.0), self.b(y) + y)[1])(self.a(x)),
    "through a view": lambda self, x: (lambda y: (y.view(-1).clamp_(0), self.b(y) + y)[1])(self.a(x)),
    "through a reshaped view": lambda self, x: (lambda y: (y.flatten(1).relu_(), self.b(y))[1])(self.a(x)),
    "into a new tensor": lambda self, x: (lambda y: (y[:, 1:3].copy_(self.a(x)[:, 1:3]), self.b(y))[1])(
        torch.zeros_like(x)
    ),
    "into the input": lambda self, x: self.b(self.a(x.relu_()) + x),
    "view before": lambda self, x: (lambda y: (lambda v: (y.relu_(), torch.cat([self.b(y), v], 1))[1])(y[:, :1]))(
        self.a(x)
    ),
    "activation read again": lambda self, x: (lambda y: F.silu(y, inplace=True) + y)(self.a(x)),
    "other dtype": lambda self, x: (lambda y: y.add_(torch.ones(1, dtype=torch.float64)))(self.a(x)),
    "transposed view": lambda self, x: (lambda y: (y.transpose(1, 3)[:, :2].zero_(), self.b(y))[1])(self.a(x)),
    "write between": lambda self, x: (lambda y: (lambda z: (y[:, :1].zero_(), z + y)[1])(self.b(y)))(self.a(x)),
}


@pytest.mark.parametrize("function", WRITES.values(), ids=WRITES)
def test_writes(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = model_of(function).eval()
    x = images(2, 4, 6, 6)
    lowered = deploy.lower(model, x)
    for shape in ((2, 4, 6, 6), (1, 4, 5, 5), (3, 4, 8, 8)):
        assert_agrees(lowered, model, images(*shape, seed=3))


def test_sums_with_sizes() -> None:
    """A size in floating point, as in the scales of relative positions, is a term but no tensor."""

    def scaled(self: Any, x: Tensor) -> Tensor:
        width = x.shape[-1]
        return self.a(x) + torch.arange(width) * (width / 2 + 0.5)

    assert_agrees(deploy.lower(model_of(scaled), images(2, 4, 8, 8)), model_of(scaled), images(3, 4, 8, 10))
