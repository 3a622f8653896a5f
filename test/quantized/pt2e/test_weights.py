"""Convolutions with any padding, and layers that compute their weight."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from torchvision_layers import nn as tnn
from torchvision_layers.quantized import convert, freeze, prepare_qat, quantize, report
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule, call_nodes, sgd, train_step, with_running_stats

X = torch.randn(8, 4, 9, 8, generator=torch.Generator().manual_seed(0))

PADDINGS = {
    **{mode: {"padding": 2, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")},
    "same": {"padding": "same"},
    "same with dilation": {"padding": "same", "dilation": (3, 1)},
    "same reflect": {"padding": "same", "padding_mode": "reflect"},
    "valid": {"padding": "valid"},
}


def padded(name: str) -> nn.Module:
    conv = nn.Conv2d(4, 6, (4, 3) if name != "valid" else 3, bias=False, **PADDINGS[name])
    return with_running_stats(nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 2, padding="same")))


@pytest.mark.parametrize("name", PADDINGS)
def test_padded_convolution_is_int8(name: str) -> None:
    model = padded(name).eval()
    graph = quantize(model, [X], engine="pt2e")
    assert decibels(model(X), graph(X)) >= 33
    assert len(call_nodes(graph, "dequantize_per_channel")) == 2
    assert not call_nodes(graph, "native_batch_norm")
    assert {row.path: row.runs_in for row in report(graph).rows}["2"] == "int8"


@pytest.mark.parametrize("name", ["reflect", "same"])
def test_padded_convolution_is_trained(name: str) -> None:
    graph = prepare_qat(padded(name), X, engine="pt2e")
    for i in range(2):
        train_step(graph, X, sgd(graph), i)
    freeze(graph)
    assert decibels(graph.eval()(X), convert(graph)(X)) >= 60


def test_functional_convolution_with_same_padding() -> None:
    model = FunctionModule(lambda m, x: functional.conv1d(x, m.conv.weight, None, 1, "same"), conv=nn.Conv1d(4, 6, 4))
    x = torch.randn(8, 4, 15)
    graph = quantize(model.eval(), [x], engine="pt2e")
    assert decibels(model(x), graph(x)) >= 35
    assert call_nodes(graph, "dequantize_per_channel")


class StandardizedConv2d(nn.Conv2d):
    """As timm writes it: a batch norm in training mode, over the weight."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


COMPUTED = {
    "standardized": lambda: StandardizedConv2d(4, 6, 3),
    "own": lambda: tnn.WSConv2d(4, 6, 3),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
    "scaled linear": lambda: FunctionModule(
        lambda m, x: functional.linear(x.mean((2, 3)), functional.normalize(m.fc.weight), m.fc.bias * 2),
        fc=nn.Linear(4, 6),
    ),
}


def computed(name: str) -> nn.Module:
    layer = COMPUTED[name]()
    norm = nn.BatchNorm1d(6) if "linear" in name else nn.BatchNorm2d(6)
    return with_running_stats(nn.Sequential(layer, norm, nn.ReLU()))


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weight_is_int8(name: str) -> None:
    model = computed(name).eval()
    graph = quantize(model, [X], engine="pt2e")
    assert decibels(model(X), graph(X)) >= 33
    assert len(call_nodes(graph, "dequantize_per_channel")) == 1
    assert not call_nodes(graph, "native_batch_norm"), "the batch norm is folded into the computed weight"
    assert decibels(graph(X), quantize(model, [X], engine="pt2e", allow_float=True)(X)) >= 60


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weight_is_trained(name: str) -> None:
    graph = prepare_qat(computed(name), X, engine="pt2e")
    before = {key: value.clone() for key, value in graph.named_parameters() if "weight" in key}
    optimizer = sgd(graph)
    for i in range(2):
        train_step(graph, X, optimizer, i)
    assert not any(torch.equal(before[key], value) for key, value in graph.named_parameters() if key in before)
    freeze(graph)
    converted = convert(graph)
    assert decibels(graph.eval()(X), converted(X)) >= 60
    assert len(call_nodes(converted, "dequantize_per_channel")) == 1


class PositionBias(nn.Module):
    """As in Swin V2: an MLP on a table of constants."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 8)[:, None])
        self.mlp = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 4))
        self.conv, self.spare = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.spare(x)
        return self.conv(x) + self.mlp(self.table).sigmoid().T[:, None]


def test_layers_on_constants_run_once() -> None:
    model = PositionBias().eval()
    graph = quantize(model, [X], engine="pt2e")
    assert decibels(model(X), graph(X)) >= 35
    assert not call_nodes(graph, "linear")
    rows = {row.path: (row.runs_in, row.why) for row in report(graph).rows}
    constant = ("float", "its result is a constant or not used")
    assert rows["conv"][0] == "int8"
    assert [rows[path] for path in ("mlp.0", "mlp.2", "spare")] == [constant] * 3


def test_layers_on_constants_are_trained() -> None:
    graph = prepare_qat(PositionBias(), X, engine="pt2e")
    before = graph.state_dict()["mlp.0.weight"].clone()
    train_step(graph, X, sgd(graph))
    assert not torch.equal(before, graph.state_dict()["mlp.0.weight"])
    freeze(graph)
    assert decibels(graph.eval()(X), convert(graph)(X)) >= 60


class WrittenConstants(nn.Module):
    """As in Swin V2: a part of a copied bias is cleared in place, and activations on constants are in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.table, self.other = nn.Linear(4, 9), nn.Linear(9, 9), nn.Linear(9, 9)
        self.register_buffer("coordinates", torch.linspace(-1, 1, 9))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.fc.bias.clone()
        before = bias * 2
        bias[3:6].zero_()
        table = self.other(functional.relu_(self.table(self.coordinates))).mul_(3)
        return functional.linear(x.mean((2, 3)), self.fc.weight, bias) + table + before


@pytest.mark.parametrize("is_qat", [False, True])
def test_writes_into_constants_count_once(is_qat: bool) -> None:
    model = WrittenConstants().eval()
    graph = prepare_qat(model, X, engine="pt2e") if is_qat else quantize(model, [X], engine="pt2e")
    if is_qat:
        graph(X)
        graph = convert(graph)
    for _ in range(2):
        assert decibels(model(X), graph(X)) >= 30
    assert len(call_nodes(graph, "linear")) == (3 if is_qat else 1)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return functional.conv2d(x, self.conv.weight * self.count.clamp(max=0.5))


def test_weight_from_changing_buffer_raises() -> None:
    with pytest.raises(TypeError, match=r"model \(Stateful.*or from buffers that it changes"):
        quantize(Stateful().eval(), [X], engine="pt2e")


class CondConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.router = nn.Parameter(torch.randn(3, 6 * 4 * 9)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixture = self.router(x.mean((0, 2, 3))).sigmoid()
        return functional.conv2d(x, (mixture @ self.weight).reshape(6, 4, 3, 3))


class HyperLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.mean((2, 3)), self.maker(x.mean((0, 2, 3))).reshape(3, 4))


@pytest.mark.parametrize("build", [CondConv, HyperLinear])
def test_weight_from_input_raises_or_stays_in_float(build: type[nn.Module]) -> None:
    model = build().eval()
    for function in (lambda: quantize(model, [X], engine="pt2e"), lambda: prepare_qat(model, X, engine="pt2e")):
        with pytest.raises(TypeError, match=rf"model \({build.__name__}.*computes its weight from the input"):
            function()
    graph = quantize(model, [X], engine="pt2e", allow_float=True)
    assert decibels(model(X), graph(X)) >= 35
    assert decibels(model(2 * X), graph(2 * X)) >= 10
