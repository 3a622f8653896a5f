"""PT2E for onnxruntime: what its kernels take and give is int8, sums and products included."""

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
    """Every kind of sum and product of the layers, and all that int8 has kernels for in between."""
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


def test_kernels_of_onnxruntime(calibrated: tuple[nn.Module, nn.Module, Tensor], tmp_path: Path) -> None:
    """What onnxruntime makes of the file when it loads it: no convolution, sum or product is left in float."""
    path = tmp_path / "model.onnx"
    deploy.export(calibrated[1], images(2), path, format="onnx-qdq")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it says that the optimized file is for this machine
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]

    convolutions = sum(isinstance(module, nn.Conv2d) for module in calibrated[0].modules())
    assert kinds.count("QLinearConv") == convolutions
    assert kinds.count("QLinearAdd") == 3
    assert kinds.count("QLinearMul") == 1
    assert not {"Conv", "FusedConv", "Relu", "Clip"} & set(kinds)


def test_for_inductor_sums_stay_in_its_convolutions() -> None:
    """For x86 the same network rounds less often, as its kernels add in float."""
    x, counts = images(), []
    for backend in ("x86", "onnxruntime"):
        graph = quantized.quantize(network(), [x], engine="pt2e", backend=backend).body.graph
        counts.append(sum(is_quantize(node) for node in graph.nodes))
    assert 0 < counts[0] < counts[1]


def test_the_output_of_the_model_is_not_rounded(calibrated: tuple[nn.Module, nn.Module, Tensor]) -> None:
    last = next(node for node in calibrated[1].body.graph.nodes if node.op == "output").args[0][0]
    assert "linear" in str(last.target)


def test_report(calibrated: tuple[nn.Module, nn.Module, Tensor]) -> None:
    rows = {row.path: row for row in quantized.report(calibrated[1]).rows}
    in_float = [path for path, row in rows.items() if row.runs_in == "float"]
    assert in_float == ["2.se.avgpool"]  # a sum and a division
    assert rows["2.act"].why == "fused into 2"


def test_training() -> None:
    torch.manual_seed(0)
    x = images()
    prepared = quantized.prepare_qat(network(), x, engine="pt2e", backend="onnxruntime")
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-2)
    for _ in range(2):
        prepared(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    quantized.freeze(prepared)
    int8 = quantized.convert(prepared)
    assert decibels(prepared.eval()(x), int8(x)) > 28
    assert int8(x[:1]).shape == (1, 5)
