"""Graphs of models that return more than one tensor."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers._utils.structure import flatten
from torchvision_layers.quantized import convert, prepare_qat, quantize
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule

X = torch.randn(4, 3, 10, 12, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


@dataclass(frozen=True)
class Detections:
    boxes: Tensor
    masks: list[Tensor]
    scores: Tensor | None = None
    size: tuple[int, int] = (0, 0)


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda y: (y, y.mean((2, 3))),
    "list in a list": lambda y: [y, [y + 1]],
    "named tuple": lambda y: Pair(y, None),
    "dict": lambda y: {"out": y, "aux": None},
    "ordered dict": lambda y: OrderedDict([("b", y), ("a", y.mean())]),
    "dataclass": lambda y: Detections(y, [y.sigmoid()], size=(1, 2)),
    "constants": lambda y: (y, True, 3, 0.5, "name", None),
    "sizes": lambda y: (y, y.shape[2] + 1, y.shape[-2:]),
    "classes": lambda y: (y, y.argmax(1)),
    "same tensor twice": lambda y: (y, y),
}


def returning(output: Callable[[Tensor], Any]) -> nn.Module:
    return FunctionModule(lambda module, x: output(module.conv(x)), conv=nn.Conv2d(3, 4, 3)).eval()


def assert_close(output: Any, expected: Any) -> None:
    (tensors, template), (expected_tensors, expected_template) = flatten(output), flatten(expected)
    assert template == expected_template
    assert type(output) is type(expected)
    for tensor, original in zip(tensors, expected_tensors, strict=True):
        if original.is_floating_point():
            assert decibels(original, tensor) >= 30
        else:
            assert (tensor == original).double().mean() >= 0.9


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_keeps_its_structure(name: str) -> None:
    model = returning(OUTPUTS[name])
    graph = quantize(model, [X], engine="pt2e")
    for x in (X, torch.rand(2, 3, 9, 20)):
        assert_close(graph(x), model(x))


def test_trained_graph_keeps_structure() -> None:
    graph = prepare_qat(returning(OUTPUTS["dataclass"]).train(), X, engine="pt2e")
    graph(X).boxes.mean().backward()
    assert_close(convert(graph)(X), graph.eval()(X))


def test_empty_batch_empties_outputs_that_grow_with_it() -> None:
    graph = quantize(
        returning(lambda y: {"map": y, "mean": y.mean((0, 2, 3)), "rows": y.flatten(0, 1)}), [X], engine="pt2e"
    )
    shapes = {name: tuple(value.shape) for name, value in graph(X[:0]).items()}
    assert shapes == {"map": (0, 4, 8, 10), "mean": (4,), "rows": (0, 8, 10)}


def test_outputs_are_not_shared_between_calls() -> None:
    graph = quantize(returning(OUTPUTS["dict"]), [X], engine="pt2e")
    output = graph(X)
    output["extra"] = 1
    assert set(graph(X)) == {"out", "aux"}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda y: None, "at least one tensor, it returns None"),
        (lambda y: {"a": None, "b": 1}, "at least one tensor, it returns a dict without any"),
        (lambda y: y.shape[2], "at least one tensor, it returns a"),
    ],
)
@pytest.mark.parametrize("is_qat", [False, True])
def test_output_without_tensor_raises(output: Callable[[Tensor], Any], message: str, is_qat: bool) -> None:
    model = returning(output)
    with pytest.raises(TypeError, match=message):
        prepare_qat(model, X, engine="pt2e") if is_qat else quantize(model, [X], engine="pt2e")


def test_single_tensor_stays_a_tensor() -> None:
    assert isinstance(quantize(returning(torch.relu), [X], engine="pt2e")(X), Tensor)
