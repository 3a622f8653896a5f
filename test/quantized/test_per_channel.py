"""Weights with one scale for all channels."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.testing._checks._quantization import decibels

ENGINES = [("eager", "x86"), ("eager", "onednn"), ("eager", "qnnpack"), ("pt2e", "x86"), ("pt2e", "onnxruntime")]


def model() -> nn.Module:
    return nn.Sequential(tnn.ConvNormAct(3, 8), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(288, 5)).eval()


def weight_scales(int8: Any) -> list[torch.Tensor]:
    """The scales of each weight, as the state dict has them."""
    scales = []
    for key, value in int8.state_dict().items():
        if isinstance(value, tuple):  # weight and bias of a linear layer
            value = value[0]
        if isinstance(value, torch.Tensor) and value.dtype is torch.qint8:
            scales.append(value.q_per_channel_scales())
        elif "_scale_" in key:
            scales.append(value)
    return scales


@pytest.mark.parametrize(("engine", "backend"), ENGINES)
@pytest.mark.parametrize("trains", [False, True])
def test_all_channels_have_the_scale_of_the_largest(engine: str, backend: str, trains: bool) -> None:
    net, x = model(), torch.randn(8, 3, 8, 8)
    options: Any = {"engine": engine, "backend": backend}
    results = []
    for per_channel in (True, False):
        if trains:
            prepared = quantized.prepare_qat(net, x, per_channel=per_channel, **options)
            with torch.no_grad():
                prepared.eval()(x)
            results.append(quantized.convert(prepared))
        else:
            results.append(quantized.quantize(net, [x], per_channel=per_channel, **options))
    each, one = map(weight_scales, results)
    assert len(each) == len(one) == 3
    for many, same in zip(each, one, strict=True):
        assert len(many.unique()) > 1
        assert torch.allclose(same, many.max().expand_as(same), rtol=1e-5)
    assert 25 < decibels(net(x), results[1](x)) < decibels(net(x), results[0](x)) + 1


def test_files_have_one_scale(tmp_path: Path) -> None:
    x = torch.randn(8, 3, 8, 8)
    for per_channel in (True, False):
        int8 = quantized.quantize(model(), [x], engine="pt2e", backend="onnxruntime", per_channel=per_channel)
        deploy.export(int8, x, tmp_path / "model.onnx", format="onnx-qdq")
        graph = onnx.load(tmp_path / "model.onnx").graph
        sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and sizes.get(node.input[0])]
        assert len(weights) >= 3
        assert {len(sizes[node.input[1]]) for node in weights} == {int(per_channel)}


def test_bad_argument() -> None:
    with pytest.raises(TypeError, match="per_channel must be True or False, got 'no'"):
        quantized.quantize(model(), [torch.randn(2, 3, 8, 8)], per_channel="no")  # type: ignore[arg-type]
