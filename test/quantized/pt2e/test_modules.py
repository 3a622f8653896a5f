"""Modules of every shape: buffers and parameters anywhere, namespaces, unused heads, extractors and FPNs."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork

from torchvision_layers import nn as tnn
from torchvision_layers.quantized import convert, freeze, prepare_qat, quantize, report
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule, sgd, train_step, with_running_stats

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class WithState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.7))
        self.register_buffer("epoch", torch.zeros(()))
        self.register_buffer("mean", torch.full((3, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x - self.mean) * self.scale


class Namespace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Module()
        self.down.conv = tnn.ConvNormAct(3, 8)
        self.down.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.down.conv(x) * self.down.scale


class Extracting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = nn.Sequential(tnn.ConvNormAct(3, 8), nn.Dropout(0.3), tnn.ConvNormAct(8, 8))
        self.extractor = create_feature_extractor(layers, ["0", "2"])

    def forward(self, x: Tensor) -> Tensor:
        features = self.extractor(x)
        return features["0"] + features["2"]


class PickedLevel(nn.Module):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key, self.stem, self.body = key, tnn.ConvNormAct(3, 8), tnn.ConvNormAct(8, 8, stride=2)
        self.fpn = FeaturePyramidNetwork([8, 8], 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.fpn({"a": y, "b": self.body(y)})[self.key]


def with_unused_head() -> nn.Module:
    head = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    return FunctionModule(lambda module, x: module.conv(x), conv=tnn.ConvNormAct(3, 4), head=head)


MODELS = {
    "state": WithState,
    "namespace": Namespace,
    "extractor": Extracting,
    "level a": lambda: PickedLevel("a"),
    "level b": lambda: PickedLevel("b"),
    "unused head": with_unused_head,
}


@pytest.mark.parametrize("name", MODELS)
def test_calibrated_graph_is_close(name: str) -> None:
    model = with_running_stats(MODELS[name]()).eval()
    graph = quantize(model, [X], engine="pt2e")
    assert decibels(model(X), graph(X)) >= 33


@pytest.mark.parametrize("name", MODELS)
def test_trained_graph_is_converted(name: str) -> None:
    graph = prepare_qat(with_running_stats(MODELS[name]()), X, engine="pt2e")
    train_step(graph, X, sgd(graph))
    freeze(graph)
    assert decibels(graph.eval()(X), convert(graph)(X)) >= 60


def test_unused_head_is_reported() -> None:
    rows = {row.path: row for row in report(quantize(with_unused_head().eval(), [X], engine="pt2e")).rows}
    for path in ("head.0", "head.1"):
        assert (rows[path].runs_in, rows[path].why) == ("float", "is never called")
