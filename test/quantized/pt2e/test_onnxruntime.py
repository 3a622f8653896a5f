"""PT2E for onnxruntime: inputs and outputs of its kernels are int8, sums and products included."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.quantized.pt2e.nodes import is_quantize
from torchvision_layers.testing._checks._quantization import decibels


def network() -> nn.Module:
    """Every kind of sum and product in the layers, and the other operations that have int8 kernels."""
    return nn.Sequential(
        tnn.ConvNormAct(3, 8),
        nn.MaxPool2d(2),
        tnn.BasicBlock(8, 8, se_layer=tnn.SqueezeExcitation),
        tnn.Bottleneck(8, 4, stride=2),
        tnn.InvertedResidual(16, 16, 1, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 32, 32)


@pytest.fixture(scope="module")
def calibrated() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = network(), images()
    return model, quantized.quantize(model, [x], engine="pt2e", backend="onnxruntime"), x


def test_int8_is_close_to_float(calibrated: tuple[nn.Module, nn.Module, Tensor]) -> None:
    model, int8, x = calibrated
    assert decibels(model(x), int8(x)) > 28


def test_onnxruntime_runs_int8_kernels(calibrated: tuple[nn.Module, nn.Module, Tensor], tmp_path: Path) -> None:
    """The graph that onnxruntime optimizes on loading has no convolution, sum or product in float."""
    path = tmp_path / "model.onnx"
    deploy.export(calibrated[1], images(2), path, format="onnx-qdq")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # no warning that the optimized file fits this machine only
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    op_types = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]

    convolutions = sum(isinstance(module, nn.Conv2d) for module in calibrated[0].modules())
    assert op_types.count("QLinearConv") == convolutions
    assert op_types.count("QLinearAdd") == 3
    assert op_types.count("QLinearMul") == 1
    assert not {"Conv", "FusedConv", "Relu", "Clip"} & set(op_types)


def test_x86_quantizes_fewer_tensors(calibrated: tuple[nn.Module, nn.Module, Tensor]) -> None:
    """Inductor's convolutions for x86 add in float, so their sums are not quantized separately."""
    model, for_onnxruntime, x = calibrated
    for_x86 = quantized.quantize(model, [x], engine="pt2e", backend="x86")
    counts = [sum(is_quantize(node) for node in int8.body.graph.nodes) for int8 in (for_x86, for_onnxruntime)]
    assert 0 < counts[0] < counts[1]


def test_model_output_is_not_quantized(calibrated: tuple[nn.Module, nn.Module, Tensor]) -> None:
    last = next(node for node in calibrated[1].body.graph.nodes if node.op == "output").args[0][0]
    assert "linear" in str(last.target)


def test_only_pooling_runs_in_float(calibrated: tuple[nn.Module, nn.Module, Tensor]) -> None:
    rows = {row.path: row for row in quantized.report(calibrated[1]).rows}
    in_float = [path for path, row in rows.items() if row.runs_in == "float"]
    assert in_float == ["2.se.avgpool"]  # computed as a sum and a division
    assert rows["2.act"].why == "fused into 2"


def test_trained_model_is_close_to_fake_quantized() -> None:
    x = images()
    network = nn.Sequential(
        tnn.ConvNormAct(3, 8),
        tnn.BasicBlock(8, 8, se_layer=tnn.SqueezeExcitation),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    prepared = quantized.prepare_qat(network, x, engine="pt2e", backend="onnxruntime")
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-2)
    for _ in range(2):
        prepared(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    quantized.freeze(prepared)
    int8 = quantized.convert(prepared)
    assert decibels(prepared.eval()(x), int8(x)) > 28
    assert int8(x[:1]).shape == (1, 5)
