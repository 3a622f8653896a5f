"""A batch of a data loader as the arguments of a forward, and nested values as flat tensors."""

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from torchvision_layers._utils.inputs import inputs_of
from torchvision_layers._utils.structure import flatten, map_tensors, rebuild

X, DEPTH, LABELS = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)


class One(nn.Module):
    def forward(self, x: Any) -> Any:
        return x


class Two(nn.Module):
    def forward(self, x: Any, depth: Any) -> Any:
        return x


class Optional(nn.Module):
    def forward(self, x: Any, depth: Any = None, *, scale: float = 1.0) -> Any:
        return x


class Variable(nn.Module):
    def forward(self, *inputs: Any) -> Any:
        return inputs


@pytest.mark.parametrize(
    ("model", "batch", "args", "kwargs"),
    [
        (One(), X, (X,), {}),
        (One(), (X, LABELS), (X,), {}),
        (One(), [X, DEPTH], (X,), {}),
        (One(), {"x": X}, (X,), {}),
        (One(), ([X, DEPTH], LABELS), ([X, DEPTH],), {}),
        (nn.Sequential(One()), (X, LABELS), (X,), {}),
        (Two(), (X, DEPTH), (X, DEPTH), {}),
        (Two(), (X, LABELS), (X, LABELS), {}),
        (Two(), (X, DEPTH, LABELS), (X, DEPTH), {}),
        (Two(), ((X, DEPTH), LABELS), (X, DEPTH), {}),
        (Two(), ({"x": X, "depth": DEPTH}, LABELS), (X, DEPTH), {}),
        (Optional(), (X, DEPTH), (X, DEPTH), {}),
        (Optional(), (X, None), (X, None), {}),
        (Optional(), (X, LABELS), (X,), {}),
        (Optional(), {"x": X, "scale": 2.0}, (X,), {"scale": 2.0}),
        (Variable(), (X, DEPTH, DEPTH), (X, DEPTH, DEPTH), {}),
        (Variable(), (X, DEPTH, LABELS), (X, DEPTH), {}),
        (Variable(), X, (X,), {}),
        (One(), LABELS, (LABELS,), {}),
    ],
)
def test_batch_becomes_arguments(model: nn.Module, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    inputs = inputs_of("batch", batch, model)
    (tensors, template), (expected, expected_template) = flatten((inputs.args, inputs.kwargs)), flatten((args, kwargs))
    assert template == expected_template
    assert all(a is b for a, b in zip(tensors, expected, strict=True))
    assert inputs.run(lambda *args, **kwargs: (args, kwargs)) == (inputs.args, inputs.kwargs)


@pytest.mark.parametrize(
    ("model", "batch", "error", "message"),
    [
        (Two(), X, TypeError, r"batch must hold the inputs of forward\(x.*missing a required argument: 'depth'"),
        (Two(), {"x": X, "y": X}, TypeError, "missing a required argument: 'depth'"),
        (nn.Conv2d(3, 4, 1), {"y": X}, TypeError, "missing a required argument: 'input'"),
        (Optional(), (X, DEPTH, DEPTH), TypeError, "too many positional arguments"),
        (One(), X.double(), TypeError, "batch must be a float32 tensor, got torch.float64"),
        (Two(), (X, DEPTH.half()), TypeError, "batch must be a float32 tensor, got torch.float16"),
        (nn.Conv2d(3, 4, 1), LABELS, TypeError, "batch must be a float32 tensor, got torch.int64"),
        (One(), "image.png", TypeError, "batch must be a float32 tensor, got str"),
        (Two(), (X, DEPTH[:0]), ValueError, r"batch must not be empty, got shape \[0, 1, 4, 4\]"),
        (Two(), (X, DEPTH / 0), ValueError, "batch must be finite, got NaN or infinity"),
    ],
)
def test_other_batches_raise(model: nn.Module, batch: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        inputs_of("batch", batch, model)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Scores:
    logits: Any
    count: int = 0
    total: int = dataclasses.field(init=False, default=7)


@pytest.mark.parametrize(
    "value",
    [
        X,
        (X, DEPTH),
        Pair(X, [DEPTH, None]),
        [X, {"b": DEPTH, "a": (X, 3, "name", True)}],
        OrderedDict(out=X, aux=None),
        Scores(X, 3),
        {"scores": Scores([X, DEPTH])},
        None,
        3.5,
    ],
)
def test_structure_is_rebuilt(value: Any) -> None:
    tensors, template = flatten(value)
    same = rebuild(template, tensors)
    assert type(same) is type(value)
    assert flatten(same)[1] == template
    assert all(a is b for a, b in zip(flatten(same)[0], tensors, strict=True))
    doubled, _ = flatten(map_tensors(lambda tensor: 2 * tensor, value))
    assert all(torch.equal(a, 2 * b) for a, b in zip(doubled, tensors, strict=True))


def test_other_structures_have_other_templates() -> None:
    values = [X, (X,), [X], {"a": X}, {"b": X}, (X, None), (X, X), Pair(X, None), Scores(X), Scores(X, 1), None]
    templates = [flatten(value)[1] for value in values]
    for i, template in enumerate(templates):
        assert [j for j, other in enumerate(templates) if other == template and type(other) is type(template)] == [i]


def test_the_original_keeps_its_tensors() -> None:
    value = {"a": [X], "b": Scores(DEPTH)}
    map_tensors(torch.zeros_like, value)
    assert value["a"][0] is X  # type: ignore[index]
    assert isinstance(value["b"], Scores)
    assert value["b"].logits is DEPTH
