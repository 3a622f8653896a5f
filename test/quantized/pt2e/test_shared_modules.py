"""Layers and batch norms that a forward calls several times."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers.quantized import convert, freeze, prepare_qat, quantize
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule, call_nodes, sgd, train_step, with_running_stats, without_quantization


def shared_layer() -> nn.Module:
    shared = tnn.ConvNormAct(8, 8)
    return nn.Sequential(nn.Conv2d(8, 8, 3), shared, nn.Conv2d(8, 8, 3), shared)


def shared_norm() -> nn.Module:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.norm(module.second(torch.relu(module.norm(module.first(x)))))

    return FunctionModule(forward, first=nn.Conv2d(8, 8, 3), second=nn.Conv2d(8, 8, 3), norm=nn.BatchNorm2d(8))


def norm_called_three_times() -> nn.Module:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.conv(module.norm(torch.relu(module.norm(torch.relu(module.norm(x))))))

    return FunctionModule(forward, conv=nn.Conv2d(8, 8, 3), norm=nn.BatchNorm2d(8))


SHARED = [shared_layer, shared_norm, norm_called_three_times]


@pytest.mark.parametrize("build", SHARED)
def test_int8_matches_trained_graph(build) -> None:
    model, x = with_running_stats(build()), torch.randn(8, 8, 12, 12)
    graph = prepare_qat(model, x, engine="pt2e")
    for i in range(2):
        train_step(graph, x, sgd(graph), i)
    tracked = [key for key in graph.state_dict() if key.endswith("num_batches_tracked")]
    norm_calls = 3 if build is norm_called_three_times else 2
    assert tracked
    assert {int(graph.state_dict()[key]) for key in tracked} == {2 * norm_calls}
    freeze(graph)
    for mode in (True, False):
        expected = graph.train(mode)(x)
        assert {int(graph.state_dict()[key]) for key in tracked} == {2 * norm_calls}, (
            "frozen and eval graphs must not count batches"
        )
    converted = convert(graph)
    assert decibels(expected, converted(x)) >= 60
    assert not any(key.endswith("num_batches_tracked") for key in converted.state_dict())


@pytest.mark.parametrize("build", SHARED)
def test_unquantized_graph_matches_float_model(build) -> None:
    model, x = with_running_stats(build()).train(), torch.randn(8, 8, 12, 12)
    graph = without_quantization(prepare_qat(model, x, engine="pt2e"))
    for mode in (True, False, True):
        torch.testing.assert_close(graph.train(mode)(x), model.train(mode)(x), rtol=1e-4, atol=1e-4)
        state = graph.state_dict()
        for key, value in model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", SHARED)
def test_int8_is_close_to_float(build) -> None:
    model, x = with_running_stats(build()).eval(), torch.randn(8, 8, 12, 12)
    graph = quantize(model, [x], engine="pt2e")
    assert decibels(model(x), graph(x)) >= 35
    assert call_nodes(graph, "dequantize_per_channel")


def test_sums_in_several_spellings() -> None:
    """Torch gives ``x + y`` and ``torch.add`` the same number, and torchao takes them for one source."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        x = torch.add(module.second(x), x)
        return module.first(x).add(x) + x

    model = FunctionModule(forward, first=nn.Conv2d(8, 8, 1), second=nn.Conv2d(8, 8, 1)).eval()
    x = torch.randn(8, 8, 12, 12)
    assert decibels(model(x), quantize(model, [x], engine="pt2e")(x)) >= 35
