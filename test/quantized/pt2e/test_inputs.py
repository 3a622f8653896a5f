"""Graphs of models with several inputs: tensors, constants, containers and integer tensors."""

import copy
import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers.quantized import convert, freeze, prepare_qat, quantize
from torchvision_layers.testing._checks._quantization import decibels

from ._support import sgd

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, 12, 12, generator=GENERATOR)
DEPTH = 5 * torch.randn(4, 1, 8, 10, generator=GENERATOR)


class Fusion(nn.Module):
    """A second input of its own image size, and two constants."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor, depth: Tensor | None = None, *, scale: float = 1.0, mode: str = "sum") -> Tensor:
        y = self.image(x).mean((2, 3))
        if depth is not None:
            y = y + self.depth(depth).mean((2, 3))
        return y * scale if mode == "sum" else y


class Variadic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return sum(self.conv(x) for x in inputs)


@dataclass
class Sample:
    image: Tensor
    boxes: list[Tensor]
    flag: bool = True


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embedding = nn.Conv2d(3, 4, 3), nn.Embedding(5, 4)

    def forward(self, sample: Sample, labels: dict[str, Tensor]) -> Tensor:
        y = self.conv(sample.image).mean((2, 3)) + self.embedding(labels["class"])
        return y + sample.boxes[0].mean(1, keepdim=True) if sample.flag else y


def nested() -> tuple[Sample, dict[str, Tensor]]:
    return Sample(X, [torch.randn(4, 4)]), {"class": torch.tensor([0, 3, 1, 4])}


CALLS = {
    "both positional": (Fusion, (X, DEPTH), {}),
    "default": (Fusion, (X,), {}),
    "keywords": (Fusion, (), {"x": X, "depth": DEPTH, "scale": 2.0, "mode": "sum"}),
    "none": (Fusion, (X, None), {}),
    "variadic": (Variadic, (X, 3 * X, X), {}),
    "nested": (Nested, nested(), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_input_is_used(name: str) -> None:
    build, args, kwargs = CALLS[name]
    model = build().eval()
    graph = quantize(model, [kwargs or args], engine="pt2e")
    assert decibels(model(*args, **kwargs), graph(*args, **kwargs)) >= 35


def test_second_input_changes_result() -> None:
    model = Fusion().eval()
    graph = quantize(model, [(X, DEPTH)], engine="pt2e")
    assert decibels(model(X, -DEPTH), graph(X, depth=-DEPTH)) >= 30
    assert not torch.equal(graph(X, -DEPTH), graph(X, DEPTH))


def test_each_input_has_its_own_image_size() -> None:
    model = Fusion().eval()
    graph = quantize(model, [(X[:1], DEPTH[:1])], engine="pt2e")
    x, depth = torch.randn(3, 3, 9, 17), torch.randn(3, 1, 20, 6)
    assert decibels(model(x, depth), graph(x, depth)) >= 25
    assert graph(x[:0], depth[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match="depth"):
        graph(x, depth[:2])


def test_trained_graph_uses_every_input() -> None:
    model = Fusion()
    graph = prepare_qat(model, (X, DEPTH), engine="pt2e")
    optimizer = sgd(graph)
    for _ in range(2):
        optimizer.zero_grad()
        graph(X, depth=DEPTH).square().mean().backward()
        assert all(parameter.grad.any() for parameter in graph.parameters())
        optimizer.step()
    freeze(graph)
    assert decibels(graph.eval()(X, DEPTH), convert(graph)(X, DEPTH)) >= 60


def test_layout_of_example_is_not_required() -> None:
    model, x = nn.Conv1d(6, 4, 3).eval(), torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    graph = quantize(model, [x[:, 0]], engine="pt2e")
    for input in (x[:, 1], x[:, 1].contiguous(), x[:, 1].mT.contiguous().mT):
        assert decibels(model(input), graph(input)) >= 25


def test_copy_takes_the_same_inputs() -> None:
    inputs = nested()
    graph = quantize(Nested().eval(), [inputs], engine="pt2e")
    assert torch.equal(graph(*inputs), copy.deepcopy(graph)(*inputs))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"x": X}, TypeError, "depth must be a float32 tensor, got NoneType"),
        ({"x": X, "depth": DEPTH.double()}, TypeError, "depth must be a float32 tensor, got torch.float64"),
        ({"x": X, "depth": DEPTH[0]}, ValueError, "depth must have 4 dimensions, got 3"),
        ({"x": X[:, :2], "depth": DEPTH}, ValueError, "x must have size 3 in dimension 1"),
        ({"x": X, "depth": DEPTH, "scale": 3.0}, ValueError, "scale must be 1.0, the example's value.*got 3.0"),
        ({"x": X, "depth": DEPTH, "mode": None}, ValueError, "mode must be 'sum', the example's value.*got None"),
        ({"x": X, "depth": DEPTH, "scale": X}, ValueError, "scale must be 1.0.*got a tensor"),
        ({"depth": DEPTH}, TypeError, r"called like forward\(x.*missing a required argument: 'x'"),
        ({"x": X, "depth": DEPTH, "z": 1}, TypeError, r"called like forward\(x.*unexpected keyword argument 'z'"),
    ],
)
def test_invalid_input_raises(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    graph = quantize(Fusion().eval(), [(X, DEPTH)], engine="pt2e")
    with pytest.raises(error, match=message):
        graph(**kwargs)


def test_input_of_other_structure_raises() -> None:
    sample, labels = nested()
    graph = quantize(Nested().eval(), [nested()], engine="pt2e")
    with pytest.raises(ValueError, match="labels must have the structure of the example, got dict"):
        graph(sample, {})
    with pytest.raises(ValueError, match=re.escape("sample.boxes must have the structure of the example, got list")):
        graph(Sample(X, []), labels)
    with pytest.raises(TypeError, match=re.escape("labels['class'] must be a int64 tensor, got torch.int32")):
        graph(sample, {"class": labels["class"].int()})
    with pytest.raises(ValueError, match="sample.flag must be True"):
        graph(Sample(X, sample.boxes, False), labels)


def test_later_batch_with_other_constant_raises() -> None:
    with pytest.raises(ValueError, match="depth must be None, the example's value and a constant of the graph"):
        quantize(Fusion().eval(), [(X,), (X, DEPTH)], engine="pt2e")
