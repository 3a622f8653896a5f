"""Forwards that write into a tensor and read it again, by itself or through a view."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torchvision_layers import deploy
from torchvision_layers.quantized import convert, freeze, prepare_qat, quantize
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule, sgd, train_step

X = torch.randn(4, 3, 10, 12, generator=torch.Generator().manual_seed(0))


def write_to_slice(x: Tensor) -> Tensor:
    x[:, :4] = 0
    return x


def write_to_view_of_view(x: Tensor) -> Tensor:
    x.transpose(1, 2)[:, :, :4].mul_(0.1)
    return x


def write_to_flattened(x: Tensor) -> Tensor:
    x.flatten(2)[..., ::2].add_(2)
    return x


def copy_to_slice(x: Tensor) -> Tensor:
    x.narrow(1, 0, 4).unsqueeze(0).copy_(x[None, :, 4:].sigmoid() * 3)
    return x


def write_twice(x: Tensor) -> Tensor:
    part = x[:, :5]
    part.fill_(0.5)
    x[:, 4:] += 1
    return x * part.mean()


def write_and_ignore_result(x: Tensor) -> Tensor:
    functional.relu_(x)
    return x


def read_earlier_view(x: Tensor) -> Tensor:
    part = x[:, 2:6]
    before = part.mean((1, 2, 3), keepdim=True)
    x.clamp_(-0.2, 0.2)
    return torch.cat([part, x[:, :4]], 1) + before


def write_into_sum(x: Tensor) -> Tensor:
    y = x + 1
    y += x
    x.mul_(0.5)
    return x + y


def add_halves(x: Tensor) -> Tensor:
    x[:, :4].add_(x[:, 4:])
    return x


def gate_halves(x: Tensor) -> Tensor:
    x[:, :4].mul_(torch.sigmoid(x[:, 4:]))
    return x


def add_to_pooled(x: Tensor) -> Tensor:
    y = functional.max_pool2d(x, 3, 1, 1)
    y[:, :2].add_(x[:, :2])
    return y


def add_to_averages(x: Tensor) -> Tensor:
    y = functional.avg_pool2d(x, 3, 1, 1)
    y[:, :2].add_(x[:, :2])
    return y


def multiply_concatenation(x: Tensor) -> Tensor:
    y = torch.cat([x, x + 1], 1)
    y[:, 4:12].mul_(x)
    return y[:, 8:] + y[:, :8]


def add_to_flattened(x: Tensor) -> Tensor:
    y = x.flatten(2)
    y[:, :4].add_(y[:, 4:])
    return x


def add_activated(x: Tensor) -> Tensor:
    y = functional.relu6(x)
    y.transpose(1, 2)[:, :, :4] += x.transpose(1, 2)[:, :, 4:]
    return y


def add_to_each_channel(x: Tensor) -> Tensor:
    channels = [x[:, i] for i in range(x.shape[1])]
    channels[3] += channels[2]
    channels[4] -= channels[3]
    return x


ARITHMETIC = [
    add_halves,
    gate_halves,
    add_to_pooled,
    add_to_averages,
    multiply_concatenation,
    add_to_flattened,
    add_activated,
    add_to_each_channel,
]
WRITES = [
    write_to_slice,
    write_to_view_of_view,
    write_to_flattened,
    copy_to_slice,
    write_twice,
    write_and_ignore_result,
    read_earlier_view,
    write_into_sum,
]


def writing(write) -> nn.Module:
    layers = {"first": nn.Conv2d(3, 8, 3), "second": nn.Conv2d(8, 4, 3)}
    return FunctionModule(lambda module, x: module.second(write(module.first(x))), **layers)


@pytest.mark.parametrize("backend", ["x86", "onnxruntime"])
@pytest.mark.parametrize("write", WRITES)
def test_calibrated_graph_sees_writes(write, backend: str) -> None:
    model = writing(write).eval()
    graph = quantize(model, [X], engine="pt2e", backend=backend)
    assert decibels(model(X), graph(X)) >= 33


@pytest.mark.parametrize("backend", ["x86", "onnxruntime", "litert", "tensorrt"])
@pytest.mark.parametrize("write", ARITHMETIC)
def test_arithmetic_in_a_view_changes_its_tensor(write, backend: str) -> None:
    model = writing(write).eval()
    graph = quantize(model, [X], engine="pt2e", backend=backend)
    trained = prepare_qat(model, X, engine="pt2e", backend=backend)
    with torch.no_grad():
        for output in (graph(X), trained(X), convert(trained)(X)):
            assert decibels(model(X), output) >= 28


@pytest.mark.parametrize("write", WRITES)
def test_trained_graph_sees_writes(write) -> None:
    model = writing(write)
    graph = prepare_qat(model, X, engine="pt2e")
    assert decibels(model(X), graph(X)) >= 30
    train_step(graph, X, sgd(graph))
    freeze(graph)
    assert decibels(graph.eval()(X), convert(graph)(X)) >= 60


@pytest.mark.parametrize("backend", ["x86", "onnxruntime", "litert", "tensorrt"])
def test_arithmetic_between_layers_changes_its_tensor(backend: str) -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        x = module.first(x)
        y = module.middle(x)
        x[:, :4].add_(y[:, 4:])
        z = functional.relu_(x + y)
        z[:, 4:] *= x[:, :4]
        return module.second(torch.cat([x, z], 1))

    layers = {"first": nn.Conv2d(3, 8, 3), "middle": nn.Conv2d(8, 8, 3, padding=1), "second": nn.Conv2d(16, 4, 3)}
    model = FunctionModule(forward, **layers).eval()
    assert decibels(model(X), quantize(model, [X], engine="pt2e", backend=backend)(X)) >= 28


@torch.no_grad()
def test_arithmetic_in_a_chunk_changes_its_tensor() -> None:
    def multiply_chunks(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        a.mul_(b)  # torch refuses it while gradients are recorded
        return x

    model = writing(multiply_chunks).eval()
    assert decibels(model(X), quantize(model, [X], engine="pt2e", backend="onnxruntime")(X)) >= 28


def test_weight_before_write_is_stored_in_int8() -> None:
    """Torchao takes it for a buffer that changes, unless it sees the input of the model among its sources."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        y = module.first(torch.cat([x, x], 1))
        y[:, 0] = y[:, 0].tanh()
        return module.second(y)

    model = FunctionModule(forward, first=nn.Conv2d(6, 8, 3), second=nn.Conv2d(8, 4, 3)).eval()
    graph = quantize(model, [X], engine="pt2e")
    weights = [tensor for tensor in graph.state_dict().values() if tensor.dim() == 4]
    assert [weight.dtype for weight in weights] == [torch.int8] * 2
    assert decibels(model(X), graph(X)) >= 33
    assert decibels(graph(X), deploy.lower(graph, X)(X)) >= 50


def test_input_may_be_written_to() -> None:
    model = FunctionModule(lambda module, x: module.conv(x.sub_(0.5)) + x.mean(), conv=nn.Conv2d(3, 4, 3)).eval()
    graph = quantize(model, [X.clone()], engine="pt2e")
    assert decibels(model(X.clone()), graph(X.clone())) >= 35


def unused_activation(module: nn.Module, x: Tensor) -> Tensor:
    functional.relu_(module.first(x))
    return module.second(module.first(x))


def write_after_last_read(module: nn.Module, x: Tensor) -> Tensor:
    y = module.first(x)
    z = module.second(y)
    y.relu_()
    return z


def unused_dropout(module: nn.Module, x: Tensor) -> Tensor:
    y = module.first(x)
    functional.dropout(functional.relu(y), training=module.training)
    return module.second(y)


@pytest.mark.parametrize("forward", [unused_activation, write_after_last_read, unused_dropout])
def test_results_that_nothing_reads(forward) -> None:
    """The quantizer expects that every operator has a user."""
    model = FunctionModule(forward, first=nn.Conv2d(3, 8, 3), second=nn.Conv2d(8, 4, 3)).eval()
    assert decibels(model(X), quantize(model, [X], engine="pt2e")(X)) >= 33


def test_write_through_data_is_an_error_with_its_line() -> None:
    def forward(module: nn.Module, x: Tensor, read) -> Tensor:
        y = module.first(x)
        read(y).mul_(2)
        return module.second(y)

    layers = {"first": nn.Conv2d(3, 8, 3), "second": nn.Conv2d(8, 4, 3)}
    model = FunctionModule(lambda module, x: forward(module, x, lambda y: y.data), **layers).eval()
    with pytest.raises(RuntimeError, match=r"test_writes\.py:\d+: model = .* y\.data.* use \.detach\(\)"):
        quantize(model, [X], engine="pt2e")
    model.function = lambda module, x: forward(module, x, Tensor.detach)
    assert decibels(model(X), quantize(model, [X], engine="pt2e")(X)) >= 33
