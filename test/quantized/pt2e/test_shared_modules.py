"""Layers and batch norms that a forward calls at several places."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers.quantized import convert, freeze, prepare_qat, quantize
from torchvision_layers.testing._checks._quantization import decibels

from ._support import Reads, calls, sgd, step, with_statistics, without_quantization


def shared_layer() -> nn.Module:
    shared = tnn.ConvNormAct(8, 8)
    return nn.Sequential(nn.Conv2d(8, 8, 3), shared, nn.Conv2d(8, 8, 3), shared)


def shared_norm() -> nn.Module:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.norm(module.second(torch.relu(module.norm(module.first(x)))))

    return Reads(forward, first=nn.Conv2d(8, 8, 3), second=nn.Conv2d(8, 8, 3), norm=nn.BatchNorm2d(8))


def shared_thrice() -> nn.Module:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.conv(module.norm(torch.relu(module.norm(torch.relu(module.norm(x))))))

    return Reads(forward, conv=nn.Conv2d(8, 8, 3), norm=nn.BatchNorm2d(8))


SHARED = [shared_layer, shared_norm, shared_thrice]


@pytest.mark.parametrize("build", SHARED)
def test_trained(build) -> None:
    model, x = with_statistics(build()), torch.randn(8, 8, 12, 12)
    graph = prepare_qat(model, x, engine="pt2e")
    for i in range(2):
        step(graph, x, sgd(graph), i)
    tracked = [key for key in graph.state_dict() if key.endswith("num_batches_tracked")]
    times = 3 if build is shared_thrice else 2
    assert tracked
    assert {int(graph.state_dict()[key]) for key in tracked} == {2 * times}
    freeze(graph)
    for mode in (True, False):
        expected = graph.train(mode)(x)
        assert {int(graph.state_dict()[key]) for key in tracked} == {2 * times}, "neither frozen nor in eval"
    converted = convert(graph)
    assert decibels(expected, converted(x)) >= 60
    assert not any(key.endswith("num_batches_tracked") for key in converted.state_dict())


@pytest.mark.parametrize("build", SHARED)
def test_without_quantization_it_is_the_float_model(build) -> None:
    model, x = with_statistics(build()).train(), torch.randn(8, 8, 12, 12)
    graph = without_quantization(prepare_qat(model, x, engine="pt2e"))
    for mode in (True, False, True):
        torch.testing.assert_close(graph.train(mode)(x), model.train(mode)(x), rtol=1e-4, atol=1e-4)
        state = graph.state_dict()
        for key, value in model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", SHARED)
def test_calibrated(build) -> None:
    model, x = with_statistics(build()).eval(), torch.randn(8, 8, 12, 12)
    graph = quantize(model, [x], engine="pt2e")
    assert decibels(model(x), graph(x)) >= 35
    assert calls(graph, "dequantize_per_channel")
