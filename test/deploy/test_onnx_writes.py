"""Operators that write into their input, and clamps, in ONNX files; torch computes what to expect."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy

X = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def write_and_return(y: Tensor) -> Tensor:
    F.relu_(y)
    return y


def read_before(y: Tensor) -> Tensor:
    before = y * 2
    return before + F.hardtanh_(y, -0.5, 0.5)


def read_after(y: Tensor) -> Tensor:
    z = F.silu(y, inplace=True)
    return torch.cat([y, z + 1, y * z], 1)


def read_through_view(y: Tensor) -> Tensor:
    half = y[:, :2]
    y.add_(3.0)
    return half + y[:, 2:]


def write_through_view(y: Tensor) -> Tensor:
    F.hardswish(y[:, 1:3], inplace=True)
    return y


FUNCTIONS = [
    write_and_return,
    read_before,
    read_after,
    read_through_view,
    write_through_view,
    F.hardtanh,
    lambda y: F.hardtanh(y, min_val=-0.3),
    lambda y: F.hardtanh(y, max_val=0.2),
    lambda y: F.hardtanh(y, -0.1, 0.4, inplace=True),
    lambda y: F.relu6(y * 9, inplace=True),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(function).eval()
    path = deploy.export(model, X, tmp_path / "model.onnx", format="onnx").path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((2, 3, 8, 10), (3, 3, 7, 5)):
        x = torch.randn(shape)
        expected = model(x).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], expected, rtol=1e-4, atol=1e-5)


def test_input_stays(tmp_path: Path) -> None:
    """The input of a file is not written to, whatever the model does with its own."""

    class Writer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu_() + 1

    path = deploy.export(Writer().eval(), X.clone(), tmp_path / "model.onnx", format="onnx").path
    x = X.clone()
    got = deploy.load(path)(x)
    assert torch.equal(x, X)
    torch.testing.assert_close(got, X.relu() + 1)


def test_operators(tmp_path: Path) -> None:
    """A ReLU6 in place is one operator."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(inplace=True), nn.Conv2d(4, 4, 3)).eval()
    path = deploy.export(model, X, tmp_path / "model.onnx", format="onnx").path
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    start = nodes.index("Conv")
    assert nodes[start : start + 3] == ["Conv", "Clip", "Conv"]


def exp_of_unsqueezed(y: Tensor) -> Tensor:
    y.squeeze(0).unsqueeze(0)[:, 0].exp_()
    return y


def zero_of_unfolded(y: Tensor) -> Tensor:
    y.unfold(2, 2, 2)[..., 0].mul_(0.0)
    return y


@torch.no_grad()
@pytest.mark.parametrize("function", [exp_of_unsqueezed, zero_of_unfolded])
def test_writes_that_the_converter_gets_wrong_name_another_format(
    function: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    model = Net(function).eval()
    with pytest.raises(RuntimeError, match="format='pt2'"):
        deploy.export(model, X, tmp_path / "m.onnx")
    deploy.export(model, X, tmp_path / "m.pt2", lowered=False)
