"""The error of int8 does not depend on the scale of inputs and weights."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.layers.layer_norm import LayerNorm2d, LayerScale
from torchvision_layers.quantized.range_search import FastRangeSearch

BACKENDS = [("eager", "x86"), ("eager", "onednn"), ("eager", "qnnpack"), ("pt2e", "x86"), ("pt2e", "onnxruntime")]
X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def decibels(expected: Tensor, value: Tensor) -> float:
    """In float64, because squares of 1e-24 are zero in float32."""
    expected, value = expected.detach(), value.detach()
    error = (value.double() - expected.double()).square().sum()
    return float(10 * torch.log10(expected.double().square().sum() / error))


def network(weight_scale: float, bias_scale: float) -> nn.Module:
    torch.manual_seed(0)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), *pool)
    for parameter in model.parameters():
        parameter.data *= weight_scale if parameter.dim() > 1 else bias_scale
    return model.eval()


def error_of(model: nn.Module, x: Tensor, engine: str, backend: str) -> float:
    int8 = quantized.quantize(model, [x], engine=engine, backend=backend)
    return decibels(copy.deepcopy(model).double()(x.double()), int8(x))


@pytest.mark.parametrize(("engine", "backend"), BACKENDS)
def test_error_is_that_of_usual_scales(engine: str, backend: str) -> None:
    usual = error_of(network(1, 1), X, engine, backend)
    assert usual >= 35
    for scale in (2.0**-20, 2.0**20):  # which change no digits
        assert abs(error_of(network(1, scale), X * scale, engine, backend) - usual) <= 0.1
        assert error_of(network(scale, 0), X, engine, backend) >= 28
    assert error_of(network(1e-6, 0), X * 1e6, engine, backend) >= 28
    assert error_of(network(1e-6, 1), X, engine, backend) >= 35  # small weights beside large biases


@pytest.mark.parametrize(("engine", "backend"), BACKENDS)
def test_bias_of_channel_without_weights(engine: str, backend: str) -> None:
    """Kernels of qnnpack and ONNX hold it in 32 bits, in steps that are those of the weights."""
    model = network(1, 1)
    nn.init.zeros_(model[0].weight[0])
    nn.init.ones_(model[0].bias)
    nn.init.constant_(model[2].weight[1:4], 1e-9)
    nn.init.constant_(model[2].bias, 3.0)
    assert error_of(model, X, engine, backend) >= 35


@pytest.mark.parametrize(("engine", "backend"), BACKENDS)
def test_trains_small_activations(engine: str, backend: str) -> None:
    """torch's fused kernel for training takes 6e-5 as the smallest step."""
    model, x = network(1, 0), X * 1e-6
    prepared = quantized.prepare_qat(model, x, engine=engine, backend=backend)
    prepared(x)
    quantized.freeze(prepared)
    assert decibels(copy.deepcopy(model).double()(x.double()), prepared.eval()(x)) >= 25
    assert decibels(prepared(x), quantized.convert(prepared)(x)) >= 35


@pytest.mark.parametrize(("engine", "backend"), BACKENDS)
def test_scaled_input_of_norms(engine: str, backend: str) -> None:
    torch.manual_seed(0)
    block = tnn.FusedMBConv(3, 8, 1, 2, norm_layer=LayerNorm2d)
    model = nn.Sequential(LayerScale(3, 1e-6), block, nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        model[0](X)
    assert error_of(model, X, engine, backend) >= 25


@pytest.mark.parametrize("backend", ["x86", "onnxruntime"])
def test_onnx_file(backend: str, tmp_path: Path) -> None:
    model, x = network(1, 1), X * 1e-6
    int8 = quantized.quantize(model, [x], engine="pt2e", backend=backend)
    file = deploy.load(deploy.export(int8, x, tmp_path / "model.onnx", format="onnx-qdq").path)
    assert decibels(copy.deepcopy(model).double()(x.double()), file(x)) >= 35


@pytest.mark.parametrize("exponent", [-70, -30, 30, 60])
def test_range_search_does_not_depend_on_the_unit(exponent: int) -> None:
    observer = type("Observer", (FastRangeSearch, torch.ao.quantization.HistogramObserver), {})
    ranges = []
    for unit in (1.0, 2.0**exponent):
        search = observer()
        for scale in (1.0, 3.0):
            search(X**3 * scale * unit)
        ranges.append([float(end) / unit for end in search._non_linear_param_search()])
    assert ranges[0] == pytest.approx(ranges[1], rel=1e-6)
