"""Modules that write into their input, which the caller reads afterwards, in the eager engine."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers.quantized import prepare_qat, quantize

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Child(nn.Module):
    def __init__(self, compute: Callable[..., Any], has_layer: bool) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1) if has_layer else nn.Identity()
        self.relu = nn.ReLU6(inplace=True)
        self.compute = compute

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, x)


def assign(child: Child, x: Tensor) -> Tensor:
    x[:, :, 1:] = F.relu(x[:, :, 1:])
    return child.layer(x) * 2


def write_to_view(child: Child, x: Tensor) -> Tensor:
    x[:, 0].mul_(0.3)
    return child.layer(x) * 2


def augment(child: Child, x: Tensor) -> Tensor:
    x += 1
    return child.layer(x) * 2


CHILDREN: dict[str, Callable[..., Any]] = {
    "method": lambda child, x: child.layer(x.mul_(0.5)) * 2,
    "function": lambda child, x: child.layer(F.hardtanh(x, -0.2, 0.5, inplace=True)) * 2,
    "module": lambda child, x: child.layer(child.relu(x)) * 2,
    "operator": augment,
    "assignment": assign,
    "view": write_to_view,
    "tuple": lambda child, x: (child.layer(x.mul_(0.5)), x),
}


class Parent(nn.Module):
    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 3, 3, padding=1)
        self.child = child


class ReadsInput(Parent):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.child(y)
        return self.last(y)


class AddsInput(Parent):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        output = self.child(y)
        return (output[0] if isinstance(output, tuple) else output) + y


class ReadsView(Parent):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.child(y.flatten(2).view_as(y))
        return self.last(y)


class CallsTwice(Parent):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.child(y)
        self.child(y)
        return self.last(y)


class WritesModelInput(Parent):
    def forward(self, x: Tensor) -> Tensor:
        self.child(x)
        return self.last(x)


PARENTS = [ReadsInput, AddsInput, ReadsView, CallsTwice, WritesModelInput]


@pytest.mark.parametrize(
    ("parent", "kind", "has_layer"),
    [
        *((parent, "operator", True) for parent in PARENTS),
        *((ReadsInput, kind, has_layer) for kind in CHILDREN for has_layer in (False, True)),
        *((AddsInput, kind, True) for kind in ("method", "assignment", "tuple")),
        *((CallsTwice, kind, False) for kind in ("view", "tuple")),
    ],
)
def test_writes_of_children_reach_the_caller(parent: type[Parent], kind: str, has_layer: bool) -> None:
    torch.manual_seed(0)
    model = parent(Child(CHILDREN[kind], has_layer)).eval().requires_grad_(False)
    expected = model(X.clone())
    output = quantize(model, [X.clone()])(X.clone())
    assert (output - expected).square().sum() < 1e-2 * expected.square().sum()
    child, model.child = model.child, nn.Identity()
    without_writes = model(X.clone())
    model.child = child
    assert parent is AddsInput or (without_writes - expected).square().sum() > 3e-2 * expected.square().sum()


class SetsData(Parent):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y.data = 5 * y.data
        return self.last(y)


def test_data_that_is_set_reaches_a_prepared_model() -> None:
    torch.manual_seed(0)
    model = SetsData(nn.Identity())
    prepared = prepare_qat(model)
    output, expected = prepared(X.clone()), model(X.clone())
    assert (output - expected).square().sum() < 1e-2 * expected.square().sum()
