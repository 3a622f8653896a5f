"""Forwards that run in float, with the convolutions and linear layers below them in int8."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(3, 8, 6, 5, generator=torch.Generator().manual_seed(4))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.register_buffer("buf", torch.ones(1))


class BranchesOnValues(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(torch.cat(tensors=[y[:, :4], 100 * self.b(x)[:, 4:]], dim=1)) if y.sum() < 1e9 else y


class BranchesOnShapes(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 4:
            x = F.pad(x, (0, 0, 0, 4 - x.shape[2] % 4), mode="reflect")
        y = torch.ops.aten.cat([self.a(x)[:, :4], 100 * self.b(x)[:, :4]], 1)
        return self.c(y)


class LoopsOverSizes(Net):
    def forward(self, x: Tensor) -> Tensor:
        rows = [self.a(x[:, :, i : i + 1]) * (i + 1) for i in range(x.shape[2])]
        return self.b(torch.cat(rows, 2))


class Asserts(Net):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.a.in_channels, f"expected {self.a.in_channels} channels, got {x.shape[1]:d}"
        return self.b(F.relu(self.a(x)) - x)


class StarInputs(nn.Module):
    """Calls a child with any number of inputs, and containers in part."""

    class Sum(Net):
        def forward(self, *inputs: Tensor) -> Tensor:
            return self.c(sum((self.a(x) for x in inputs), start=torch.zeros(())))

    def __init__(self) -> None:
        super().__init__()
        self.sum = self.Sum()
        self.space = nn.Module()
        self.space.layers = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())])
        self.parts = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.space.layers[: int(x.sum() < 1e9)]:
            y = layer(y)
        return self.sum(x, self.parts[1](y), self.parts[0](y))


class RereadsView(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        view = y.flatten(2)
        y += 1
        return self.c(y) * view.reshape(x.shape)


class RereadsIdentity(Net):
    def __init__(self) -> None:
        super().__init__()
        self.identity = nn.Sequential(nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.identity(y)
        F.relu(y, inplace=True)
        return self.c(z)


class WritesBuffer(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.buf.copy_(y.mean())
        return y + self.buf


class WritesParts(Net):
    def forward(self, x: Tensor) -> Tensor:
        out = self.a(x) * 1
        out[:, :4] = 0
        return self.c(out)


class SetsAttribute(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x)
        return self.last + 1


class MutatesList(Net):
    def forward(self, x: Tensor) -> Tensor:
        outputs = self.collect([self.a(x)], ["a"])
        return self.c(outputs[0] + outputs[1])

    def __init__(self) -> None:
        super().__init__()
        self.collect = Collect()


class Collect(nn.Module):
    def forward(self, tensors: list[Tensor], names: list[str]) -> list[Tensor]:
        names.append("pool")
        tensors.append(F.max_pool2d(tensors[-1], 1, 1))
        return tensors


class WithOptions(Net):
    """A child that is called with other values than its defaults."""

    class Child(Net):
        def forward(self, x: Tensor, flag: bool = False, mask: Tensor | None = None, size: int = 1) -> Tensor:
            x = self.a(x) * size if flag else x
            return self.b(x if mask is None else x * mask)

    def __init__(self) -> None:
        super().__init__()
        self.child, self.other = self.Child(), self.Child()

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.child(x, True, mask=self.buf > 0, size=x.shape[2])) + self.other(x, flag=True)


class ReadsWeights(Net):
    """Functions that get the weights of children, as in the attention of torchvision's Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.edited = nn.Linear(5, 5), nn.Linear(5, 5)
        self.plain = nn.Linear(5, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.edited.bias.clone()
        bias[:3].zero_()
        x = F.linear(x, self.linear.weight, self.linear.bias) + F.linear(x, weight=self.edited.weight, bias=bias)
        x = F.conv2d(x.to(self.a.weight.dtype), self.a.weight, self.a.bias, padding=(0, 0))
        return F.linear(x, self.plain.weight, self.plain.bias)


UNTRACEABLE = [
    *(BranchesOnValues, BranchesOnShapes, LoopsOverSizes, Asserts, StarInputs, RereadsView, RereadsIdentity),
    *(WritesBuffer, WritesParts, SetsAttribute, MutatesList, WithOptions, ReadsWeights),
]


@pytest.mark.parametrize("cls", UNTRACEABLE)
@torch.no_grad()
def test_layers_of_any_forward_are_int8(cls: type[nn.Module]) -> None:
    model = nn.Sequential(cls(), nn.Conv2d(8, 8, 1)).eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    before = list(model.state_dict())
    for backend in ("x86", "onednn"):
        int8 = quantized.quantize(model, [X.clone()], backend=backend)
        assert decibels(model(X), int8(X)) >= 26
    assert decibels(model(X[:1]), int8(X[:1])) >= 24
    assert torch.equal(copy.deepcopy(int8)(X), int8(X))
    again = quantized.quantize(model, [0.5 * X], backend="onednn")
    again.load_state_dict(int8.state_dict(), strict=True)
    assert torch.equal(again(X), int8(X))
    rows = {row.path: row for row in quantized.report(int8).rows if row.why != "is never called"}
    layers = [path for path, module in model.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]
    assert {rows[path].runs_in for path in layers if path in rows} == {"int8"}
    assert {"0", "1"} & rows.keys()
    assert list(quantized.quantizable(model).state_dict()) == before


FLOAT_FORWARDS: list[type[nn.Module]] = [BranchesOnValues, LoopsOverSizes, StarInputs, WritesParts]


@pytest.mark.parametrize(
    ("cls", "has_example"),
    [
        *((cls, has_example) for cls in FLOAT_FORWARDS for has_example in (True, False)),
        (WithOptions, True),  # without an example, each forward is traced with its defaults
    ],
)
def test_float_forward_is_trained(cls: type[nn.Module], has_example: bool) -> None:
    prepared = quantized.prepare_qat(nn.Sequential(cls(), nn.Conv2d(8, 8, 1)), X if has_example else None)
    prepared(X).sum().backward()
    expected = prepared.eval()(X).detach()
    assert decibels(expected, quantized.convert(prepared)(X)) >= 30
    weights = [p for name, p in prepared.named_parameters() if name.endswith("weight") and p.dim() == 4]
    assert any(weight.grad is not None for weight in weights)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


@dataclass
class Output:
    pair: Pair
    flag: bool
    names: dict[str, list[Tensor]]


class Structured(Net):
    """Passes structures from a float forward to int8 and back."""

    class Child(Net):
        def forward(self, inputs: dict[str, Tensor], *, scale: Tensor) -> Output:
            return Output(Pair(self.a(inputs["x"]) * scale, None), True, {"b": [self.b(inputs["y"])]})

    def __init__(self) -> None:
        super().__init__()
        self.child = self.Child()

    def forward(self, x: Tensor) -> Output:
        output = self.child({"x": self.a(x), "y": x}, scale=torch.sigmoid(x)) if x.sum() < 1e9 else None
        assert output is not None
        return Output(Pair(self.c(output.pair.first), output.pair.second), output.flag, output.names)


def test_structures_pass_between_float_and_int8() -> None:
    model = Structured().eval()
    expected, actual = model(X), quantized.quantize(model, [X])(X)
    assert actual.flag
    assert actual.pair.second is None
    assert decibels(expected.pair.first, actual.pair.first) >= 28
    assert decibels(expected.names["b"][0], actual.names["b"][0]) >= 28


def test_int8_output_is_not_rounded_again() -> None:
    """The output of one layer is the input of the next, unless the forward writes into it."""

    class Chain(Net):
        def forward(self, x: Tensor, writes: bool = False) -> Tensor:
            y = self.a(x)
            if x.sum() < 1e9 and writes:
                y.mul_(3)
            return self.b(y)

    model = Chain().eval()
    int8 = quantized.quantize(model, [(X, True)])
    assert decibels(model(X, True), int8(X, True)) >= 28
    region = int8.model.module
    with torch.no_grad():
        y = region.a(X)
        assert torch.equal(region.b(y), region.b.module(y.int8_source[0]).dequantize())
        with torch.inference_mode():
            assert decibels(model(X, True), int8(X, True)) >= 28


class ChangesBias(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.a.weight, self.a.bias * x.mean())


def test_bias_that_varies_is_refused() -> None:
    with pytest.raises((RuntimeError, ValueError), match="with another bias than that of the layer"):
        quantized.quantize(ChangesBias().eval(), [X, 2 * X])
    with pytest.raises(RuntimeError, match="with another bias than that of the layer, which cannot be trained"):
        quantized.prepare_qat(ChangesBias(), X)


class DropsInEvalMode(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.dropout(self.a(x)))


def test_random_forward_is_named() -> None:
    message = r"0 is a DropsInEvalMode \(.*test_float_forwards.py:\d+\), whose result changed .* more than its input"
    with pytest.raises(RuntimeError, match=message):
        quantized.quantize(nn.Sequential(DropsInEvalMode()).eval(), [X])


class Remembers(Net):
    """Keeps a result for others, as feature extractors do."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.features = y + self.b(x)
        return self.c(self.features)


def test_results_that_a_forward_keeps() -> None:
    model = Remembers().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    int8 = quantized.quantize(model, [X])
    expected, output = model(X), int8(X)
    assert decibels(expected, output) > 26
    kept = [vars(module)["features"] for module in int8.modules() if "features" in vars(module)]
    assert [tensor.shape for tensor in kept] == [model.features.shape]
    assert decibels(model.features, kept[0].dequantize() if kept[0].is_quantized else kept[0]) > 26
