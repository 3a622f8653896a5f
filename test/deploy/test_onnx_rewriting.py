"""ONNX files contain operators that runtimes compute on integers, in place of those that they do not."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized

X = torch.randn(2, 3, 12, 14, generator=torch.Generator().manual_seed(0))
Middle = Callable[[Any, Tensor], Tensor]
SIZES = ((2, 3, 12, 14), (1, 3, 9, 16), (3, 3, 15, 11))


class Net(nn.Module):
    """``middle`` computes with 8 channels and the children ``conv``, ``strided`` and ``depthwise``."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3)
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=(1, 0))
        self.depthwise = nn.Conv2d(8, 8, (3, 2), groups=8)
        self.head = nn.Linear(8, 5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, F.relu(self.stem(x))).mean((2, 3)))


def operators(path: Path) -> Counter[str]:
    nodes = onnx.load(path).graph.node
    return Counter(node.op_type for node in nodes if not node.name.startswith(("size_check", "inputs must")))


def optimized(path: Path) -> Counter[str]:
    """The operators that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path.with_suffix(".optimized.onnx")), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return operators(path.with_suffix(".optimized.onnx"))


def write(model: nn.Module, path: Path) -> Path:
    """Exports a model, and compares the file with it."""
    file = deploy.export(model, X, path / "model.onnx", format="onnx").path
    loaded = deploy.load(file)
    for shape in SIZES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    return file


MERGED: dict[str, Middle] = {
    "one side": lambda net, x: net.conv(F.pad(x, (0, 1, 2, 0))),
    "beside padding": lambda net, x: net.strided(F.pad(x, (1, 0, 0, 1))),
    "two convolutions": lambda net, x: net.conv(F.pad(x, (1, 1))) + net.conv(F.pad(x, (1, 1))),
    "read twice": lambda net, x: (lambda y: net.conv(y) + net.conv(y) * 2)(F.pad(x, (0, 2, 1, 1))),
    "twice": lambda net, x: net.depthwise(F.pad(F.pad(x, (0, 1)), (0, 0, 1, 1))),
    "channels": lambda net, x: net.conv(F.pad(x, (1, 1, 1, 1, 0, 0))),
}
KEPT: dict[str, Middle] = {
    "pooling": lambda net, x: net.conv(F.max_pool2d(F.pad(x, (0, 1, 0, 1)) - 1, 2)),
    "other values": lambda net, x: net.conv(F.pad(x, (0, 1), value=1.0)),
    "reflection": lambda net, x: net.conv(F.pad(x, (0, 1, 1, 0), mode="reflect")),
    "negative": lambda net, x: net.conv(F.pad(x, (-1, 1))),
    "read elsewhere": lambda net, x: (lambda y: net.conv(y).mean() + y)(F.pad(x, (0, 1))),
    "channels": lambda net, x: net.conv(F.pad(x[:, :6], (0, 1, 0, 0, 1, 1))),
}


@pytest.mark.parametrize("name", MERGED)
def test_pads_move_into_convolutions(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = operators(write(Net(MERGED[name]).eval(), tmp_path))
    assert "Pad" not in found
    assert found["GlobalAveragePool"] == 1


@pytest.mark.parametrize("name", KEPT)
def test_other_pads_stay(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert "Pad" in operators(write(Net(KEPT[name]).eval(), tmp_path))


@pytest.mark.parametrize("dim", [2, (1, 2), (1, 2, 3), (0, 2, 3)])
def test_other_means_stay(dim: int | tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).mean(dim)

    model = Mean().eval()
    file = deploy.export(model, X, tmp_path / "model.onnx", format="onnx").path
    torch.testing.assert_close(deploy.load(file)(X), model(X))
    assert "GlobalAveragePool" not in operators(file)


@pytest.mark.parametrize("name", ["one side", "beside padding", "twice"])
def test_int8_files_run_on_integers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    int8 = quantized.quantize(Net(MERGED[name]).eval(), [X], engine="pt2e", backend="onnxruntime")
    file = deploy.export(int8, X, tmp_path / "model.onnx", format="onnx-qdq").path
    found = optimized(file)
    assert not {"Pad", "Conv", "Gemm", "MatMul", "ReduceMean", "GlobalAveragePool"} & set(found)
    assert found["QGemm"] == found["QLinearGlobalAveragePool"] == found["QuantizeLinear"] == 1
    torch.testing.assert_close(deploy.load(file)(X), int8(X), rtol=0, atol=0.02 * float(int8(X).abs().max()))


def test_biases_far_above_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(MERGED["one side"]).eval()
    with torch.no_grad():
        model.head.weight.mul_(1e-8)
    int8 = quantized.quantize(model, [X], engine="pt2e", backend="onnxruntime")
    loaded = deploy.load(deploy.export(int8, X, tmp_path / "model.onnx", format="onnx-qdq").path)
    torch.testing.assert_close(loaded(X), int8(X), rtol=1e-5, atol=1e-6)
