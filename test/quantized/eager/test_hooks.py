"""Hooks that a user registered: those that read values see floats, those that change values are never dropped."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers.quantized import convert, prepare_qat, quantize, report

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
Register = Callable[[nn.Module], Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.conv(x))))
        return self.head(x.mean((2, 3)))


def make(register: Register | None = None, path: str = "") -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    if register is not None:
        register(model.get_submodule(path))
    return model.eval().requires_grad_(False)


def decibels(output: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (output - expected).square().sum()))


CHANGES: dict[str, Register] = {
    "output": lambda m: m.register_forward_hook(lambda module, args, output: output * 1.5),
    "output and keyword arguments": lambda m: m.register_forward_hook(
        lambda module, args, kwargs, output: output * 1.5, with_kwargs=True
    ),
    "output in place": lambda m: m.register_forward_hook(lambda module, args, output: output.mul_(1.5)),
    "input": lambda m: m.register_forward_pre_hook(lambda module, args: args[0] * 0.5),
    "inputs": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,)),
    "inputs and keyword arguments": lambda m: m.register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] * 0.5,), kwargs), with_kwargs=True
    ),
}


@pytest.mark.parametrize("register", CHANGES.values(), ids=CHANGES)
def test_layers_whose_hooks_change_values_are_named(register: Register) -> None:
    with pytest.raises(TypeError, match=r"^conv is a .*whose hooks change its inputs or outputs"):
        quantize(make(register, "conv"), [X])
    with pytest.raises(TypeError, match=r"^head is a .*whose hooks change its inputs or outputs"):
        prepare_qat(make(register, "head").train(), X)


@pytest.mark.parametrize(
    ("kind", "path", "options"),
    [
        *((kind, "conv", {"allow_float": True}) for kind in CHANGES),
        *((kind, "relu", {}) for kind in CHANGES),
        ("output", "conv", {"exclude": ["conv"]}),
        ("inputs", "conv", {"engine": "pt2e"}),
        ("output", "", {"engine": "pt2e"}),
        ("inputs", "head", {"allow_float": True}),
        ("output", "norm", {}),
        ("inputs", "pool", {}),
    ],
    ids=str,
)
def test_hooks_that_change_values_run(kind: str, path: str, options: dict[str, Any]) -> None:
    register = CHANGES[kind]
    expected = make(register, path)(X)
    output = quantize(make(register, path), [X], **options)(X)
    assert decibels(output, expected) > 30
    assert decibels(make()(X), expected) < 30


def test_report_of_modules_with_hooks_that_change_values() -> None:
    int8 = quantize(make(CHANGES["output"], "pool"), [X])
    assert {row.path: row.runs_in for row in report(int8).rows}["pool"] == "float"


@pytest.mark.parametrize("register", CHANGES.values(), ids=CHANGES)
def test_hooks_of_the_model_that_change_values_are_refused(register: Register) -> None:
    with pytest.raises(TypeError, match="hooks of the model must not change its inputs or outputs"):
        quantize(make(register), [X], allow_float=True)


READERS: dict[str, Callable[[nn.Module, list[Any]], Any]] = {
    "output": lambda m, seen: m.register_forward_hook(lambda module, args, output: seen.append(output.std())),
    "output, returned": lambda m, seen: m.register_forward_hook(lambda module, args, output: output),
    "output and keyword arguments": lambda m, seen: m.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(output.float()), with_kwargs=True
    ),
    "inputs": lambda m, seen: m.register_forward_pre_hook(lambda module, args: seen.append(args[0].float() + 1)),
    "inputs, returned": lambda m, seen: m.register_forward_pre_hook(lambda module, args: args),
    "input, returned": lambda m, seen: m.register_forward_pre_hook(lambda module, args: args[0]),
    "inputs and keyword arguments": lambda m, seen: m.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].float() + 1), with_kwargs=True
    ),
    "inputs and keyword arguments, returned": lambda m, seen: m.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs), with_kwargs=True
    ),
}


@pytest.mark.parametrize(
    ("kind", "path"),
    [*((kind, "conv") for kind in READERS), *(("inputs", path) for path in ("", "norm", "relu", "pool", "head"))],
)
def test_hooks_that_read_values_see_floats(kind: str, path: str) -> None:
    register = READERS[kind]
    seen: list[Any] = []
    int8 = quantize(make(lambda module: register(module, seen), path), [X])
    seen.clear()
    output = int8(X)
    assert decibels(output, make()(X)) > 30
    assert all(not value.is_quantized for value in seen)


@pytest.mark.parametrize("register", READERS.values(), ids=READERS)
def test_hooks_that_read_values_in_training(register: Callable[[nn.Module, list[Any]], Any]) -> None:
    seen: list[Any] = []
    prepared = prepare_qat(make(lambda module: register(module, seen), "conv").train().requires_grad_(), X)
    prepared(X).sum().backward()
    assert convert(prepared)(X).isfinite().all()


def test_hooks_that_begin_to_change_values() -> None:
    def change(module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        return output + 1 if output.is_quantized or changes else None

    changes = False
    int8 = quantize(make(lambda module: module.register_forward_hook(change), "conv"), [X])
    changes = True
    with pytest.raises(TypeError, match="hooks of an int8 model must not change values, .*change.* of Conv"):
        int8(X)
