"""A ``forward`` whose effects a trace would lose or freeze runs as it is, or changes of them are refused."""

import collections
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Flipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        y = self.conv(x)
        return self.last(-3 * y if flip else y)


class BySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Flipping()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, flip=True) if x.shape[-1] > 16 else self.part(x)


def test_a_value_of_an_argument_does_not_become_its_default() -> None:
    torch.manual_seed(0)
    model = Flipping().eval()
    int8 = quantized.quantize(model, [{"x": X, "flip": True}])
    assert decibels(model(X, True), int8(X, True)) > 30
    with pytest.raises(ValueError, match="^flip must be True, as in the first call of this forward, got False"):
        int8(X)


def test_a_child_that_later_gets_another_value_is_refused() -> None:
    with pytest.raises(ValueError, match="^flip must be True, as in the first call of this forward, got False"):
        quantized.quantize(BySize().eval(), [torch.randn(4, 3, 24, 24), X])


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depth = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return y if depth is None else y + self.depth(depth)


def test_an_argument_of_the_first_call_must_be_passed() -> None:
    int8 = quantized.quantize(Conditional().eval(), [(X, X[:, :1])])
    with pytest.raises(ValueError, match="^depth must be passed, as in the first call of this forward, got None"):
        int8(X)


class Random(nn.Module):
    """Leaves out a layer at random in training."""

    def __init__(self, draw: str) -> None:
        super().__init__()
        self.conv, self.branch, self.draw = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), draw

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        draws = {"torch": lambda: float(torch.rand(())), "random": random.random, "numpy": lambda: np.random.rand()}
        return y + self.branch(y) if not self.training or draws[self.draw]() < 0.5 else y


@pytest.mark.parametrize("draw", ["torch", "random", "numpy"])
def test_random_branches_stay_random(draw: str) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        prepared = quantized.prepare_qat(Random(draw), X)
        for _ in range(20):
            prepared(X)
        quantized.freeze(prepared)
        assert len({float(prepared(X).detach().sum()) for _ in range(20)}) == 2


KEPT: list[Tensor] = []


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.history = nn.Conv2d(3, 8, 3), collections.deque[Tensor](maxlen=3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) * 2
        KEPT.append(y)
        self.history.append(y)
        return y + 1


def test_lists_outside_get_what_they_always_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "KEPT", [])  # the other is frozen for the garbage collector
    model = Keeping().eval()
    int8 = quantized.quantize(model, [X])
    count = len(KEPT)
    int8(X)
    assert len(KEPT) == count + 1
    assert {type(item) for item in KEPT} == {Tensor}
    assert not model.history


class Temperature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.temperature = nn.Conv2d(3, 8, 3), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) / self.temperature).softmax(1)


def test_constants_of_a_trace_cannot_be_changed() -> None:
    prepared = quantized.prepare_qat(Temperature(), X)
    part = next(module for module in prepared.modules() if isinstance(module, Temperature))
    part.temperature = part.temperature
    with pytest.raises(AttributeError, match="^temperature is a constant of the quantizable Temperature"):
        part.temperature = 30.0
    prepared.eval().train()


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.context, self.conv = None, nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.context


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.memory = nn.Conv2d(3, 8, 3), Memory()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.memory.context = y.mean((2, 3), keepdim=True)
        return self.memory(y * 2)


def test_attributes_of_a_child_may_be_written() -> None:
    torch.manual_seed(0)
    model = Writing().eval()
    int8 = quantized.quantize(model, [torch.cat([X, X.flip(1)])])
    for x in (X, X.flip(1)):
        assert decibels(model(x), int8(x)) > 30


class OfList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if isinstance(x, (list, tuple)):
            x = x[0]
        return self.conv(x) + x


class WithList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), OfList()

    def forward(self, x: Tensor) -> Tensor:
        return self.head([self.conv(x)])


def test_a_forward_may_ask_for_the_class_of_its_input() -> None:
    torch.manual_seed(0)
    model = WithList().eval()
    assert decibels(model(X), quantized.quantize(model, [X])(X)) > 30


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.ones(8))
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        return x


def update(model: Any, y: Tensor) -> None:
    model.loss.center.mul_(0.9).add_(y.detach().mean((0, 2, 3)), alpha=0.1)


def update_data(model: Any, y: Tensor) -> None:
    model.loss.center.data.mul_(0.9)


def replace(model: Any, y: Tensor) -> None:
    model.loss.center = model.loss.center * 0.9


def count(model: Any, y: Tensor) -> None:
    model.loss.steps += 1


def update_own(model: Any, y: Tensor) -> None:
    model.center.data.mul_(0.9)


def clamp_weights(model: Any, y: Tensor) -> None:
    for parameter in model.last.parameters():
        parameter.data.clamp_(-0.05, 0.05)


class Centering(nn.Module):
    def __init__(self, write: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.conv, self.last, self.loss, self.write = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), Loss(), write
        self.register_buffer("center", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = y + y.sigmoid()
        if self.training:
            self.write(self, y)
        return self.last(y)


@pytest.mark.parametrize("has_example", [True, False])
@pytest.mark.parametrize("write", [update, update_data, replace, count, update_own, clamp_weights])
def test_writes_happen_in_training_and_not_before(write: Callable[[Any, Tensor], None], has_example: bool) -> None:
    torch.manual_seed(0)
    model = Centering(write)
    prepared = quantized.prepare_qat(model, X if has_example else None)
    part = next(module for module in prepared.modules() if isinstance(module, Centering))
    for _ in range(2):
        state = {key.replace("module.", ""): value for key, value in prepared.state_dict().items()}
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=0.01, atol=0.01)
        assert part.loss.steps == model.loss.steps
        model(X), prepared(X)
