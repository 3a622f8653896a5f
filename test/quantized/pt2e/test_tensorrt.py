"""PT2E for TensorRT: the placement of quantization in the file follows NVIDIA's rules, node by node."""

import functools
import importlib
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torchvision
from onnx import numpy_helper
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.quantized.pt2e.nodes import is_dequantize, is_quantize
from torchvision_layers.testing._checks._quantization import decibels

from ._support import with_running_stats
from ._tensorrt_rules import broken_rules


class Swish(nn.Module):
    """An activation that is written as a product."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Dense(nn.Module):
    """Concatenations of concatenations behind norms, as in DenseNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(channels + 4 * i), nn.ReLU(), nn.Conv2d(channels + 4 * i, 4, 3, padding=1))
            for i in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.convs:
            features.append(conv(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Split(nn.Module):
    """Two branches that are moved and added, without a layer in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        both = first + second
        return torch.relu(self.norm(self.conv(both))) + both


def network() -> nn.Module:
    """Sums of a layer and the identity, of two layers and of none; products, pools, concatenations, activations."""
    model = nn.Sequential(
        tnn.ConvNormAct(3, 8, activation_layer=Swish),
        nn.MaxPool2d(3, 2, 1),
        tnn.BasicBlock(8, 8, se_layer=tnn.SqueezeExcitation),
        tnn.Bottleneck(8, 4, stride=2),
        tnn.InvertedResidual(16, 16, 1, 2),
        Dense(16),
        tnn.ConvNormAct(24, 16, 1, activation_layer=None),
        nn.AvgPool2d(2),
        Split(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return with_running_stats(model).eval()


def images(count: int = 8, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@functools.cache
def calibrated() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = network()
    return model, quantized.quantize(model, [images()], engine="pt2e", backend="tensorrt", dynamic_sizes=False)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensorrt") / "model.onnx"
    return deploy.export(calibrated()[1], images(2), path, format="onnx-qdq").path


def test_int8_is_close_to_float(file: Path) -> None:
    model, int8 = calibrated()
    x = images()
    assert decibels(model(x), int8(x)) > 25
    assert decibels(model(x), deploy.load(file)(x)) > 25


def test_rules(file: Path) -> None:
    graph = onnx.load(file)
    assert broken_rules(graph) == []
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("Conv") == sum(isinstance(module, nn.Conv2d) for module in calibrated()[0].modules())
    assert {"Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Gemm"} <= set(operators)


def writer(graph: Any, name: str) -> Any:
    return next(node for node in graph.node if name in node.output)


def quantize_layer(graph: Any) -> None:
    """Moves a pair from behind an activation to the layer in front of it."""
    relu = next(n for n in graph.node if n.op_type == "Relu" and writer(graph, n.input[0]).op_type == "Conv")
    quantize = next(n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == relu.output[0])
    quantize.input[0] = relu.input[0]


def quantize_no_identity(graph: Any) -> None:
    for add in (node for node in graph.node if node.op_type == "Add"):
        for i, name in enumerate(add.input):
            source = next((node for node in graph.node if name in node.output), None)
            if source is not None and source.op_type == "DequantizeLinear":
                add.input[i] = writer(graph, source.input[0]).input[0]


def shift_zero_points(graph: Any) -> None:
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and not numpy_helper.to_array(tensor).shape:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))


def scale_concatenation(graph: Any) -> None:
    concat = next(node for node in graph.node if node.op_type == "Concat")
    graph.initializer.append(numpy_helper.from_array(torch.tensor(0.125).numpy(), "other"))
    dequantize = writer(graph, concat.input[0])
    dequantize.input[1] = writer(graph, dequantize.input[0]).input[1] = "other"


def pool_in_float(graph: Any) -> None:
    pool = next(node for node in graph.node if node.op_type == "MaxPool")
    pool.input[0] = writer(graph, writer(graph, pool.input[0]).input[0]).input[0]


@pytest.mark.parametrize(
    ("break_graph", "message"),
    [
        (quantize_layer, "quantized before its norm or activation"),
        (quantize_no_identity, "the identity branch must be quantized"),
        (shift_zero_points, "the zero point must be 0"),
        (scale_concatenation, "inputs and output must have one scale"),
        (pool_in_float, "the input of a pool must be quantized"),
    ],
)
def test_the_check_finds_broken_rules(break_graph: Any, message: str, file: Path) -> None:
    model = onnx.load(file)
    break_graph(model.graph)
    assert any(message in problem for problem in broken_rules(model))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(tuple(range(2, x.dim())))


@pytest.mark.parametrize(
    ("dims", "pool"),
    [
        (1, nn.MaxPool1d(2)),
        (1, nn.AvgPool1d(2)),
        (1, nn.AdaptiveAvgPool1d(3)),
        (2, nn.AdaptiveAvgPool2d(2)),
        (2, Mean()),
        (3, nn.MaxPool3d(2)),
        (3, nn.AvgPool3d(2)),
        (3, nn.AdaptiveAvgPool3d(1)),
    ],
    ids=str,
)
def test_pools_run_on_int8(dims: int, pool: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, *[6] * dims)
    conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    features = nn.Sequential(conv(3, 4, 1), nn.ReLU(), pool, nn.Flatten())
    model = nn.Sequential(features, nn.Linear(features(x).shape[1], 2)).eval()
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="tensorrt")
    nodes = [node for node in int8.body.graph.nodes if "pool" in str(node.target) or "mean" in str(node.target)]
    assert len(nodes) == 1
    assert is_dequantize(nodes[0].args[0])
    assert all(map(is_quantize, nodes[0].users))


@pytest.mark.slow
def test_trained_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = images()
    layers = [tnn.ConvNormAct(3, 8), tnn.BasicBlock(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    prepared = quantized.prepare_qat(nn.Sequential(*layers), x, engine="pt2e", backend="tensorrt")
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-2)
    for _ in range(2):
        prepared(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    quantized.freeze(prepared)
    int8 = quantized.convert(prepared)
    assert decibels(prepared.eval()(x), int8(x)) > 25
    path = deploy.export(int8, x[:2], tmp_path / "model.onnx", format="onnx-qdq").path
    assert broken_rules(onnx.load(path)) == []


@pytest.mark.parametrize("ranges", ["histogram", "minmax", "percentile", "mse", "auto"])
def test_ranges_are_symmetric(ranges: str) -> None:
    """A rare large value is cut off, and all 127 steps of a rectified tensor are in use."""
    x = images(4, 16).abs()
    x[0, 0, 0, 0] = 20
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="tensorrt", ranges=ranges, check=False)
    qparams = int8.state_dict()
    scale, zero_point = (float(qparams[f"activation_{name}"][0]) for name in ("scales", "zero_points"))
    assert zero_point == 0
    if ranges == "minmax":
        assert scale == pytest.approx(20 / 127.5)
    else:
        assert float(x.mean()) / 127 < scale <= 20.01 / 127.5


@pytest.mark.slow
def test_excluded_layer_is_float(tmp_path: Path) -> None:
    """It adds no sum to its result, whose terms are both in int8."""
    torch.manual_seed(0)
    model = with_running_stats(nn.Sequential(tnn.ConvNormAct(3, 8), tnn.BasicBlock(8, 8), nn.Conv2d(8, 4, 1))).eval()
    int8 = quantized.quantize(model, [images()], engine="pt2e", backend="tensorrt", exclude=["1.conv2"])
    graph = onnx.load(deploy.export(int8, images(2), tmp_path / "model.onnx", format="onnx-qdq").path)
    problems = [problem.partition(": ")[2] for problem in broken_rules(graph)]
    assert problems == ["the input must be in int8", "the weight must be in int8"]
    assert decibels(model(images()), int8(images())) > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121"])
def test_rules_in_networks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    stir = importlib.import_module("zoo.stirring").stir
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    x = images(4, 64)
    stir(model, x, torch.Generator().manual_seed(0))
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="tensorrt", dynamic_sizes=False)
    for_onnxruntime = quantized.quantize(model, [x], engine="pt2e", backend="onnxruntime", dynamic_sizes=False)
    exported = deploy.export(int8, x[:2], tmp_path / "model.onnx", format="onnx-qdq")
    assert broken_rules(onnx.load(exported.path)) == []
    expected = model(x)
    loss = decibels(expected, for_onnxruntime(x)) - decibels(expected, deploy.load(exported.path)(x))
    assert loss < 4  # a tensor without negative values uses half of the steps
