"""Int8 on processors without VNNI, which add two products of 8 bits in 16 bits: no such sum may overflow."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

from ..interpreter import Interpreter

#: The model has weights of one size, nearly all of one sign, and inputs at the end of their range. It prints the
#: largest error, relative to the largest output, of what the first argument names.
PROGRAM = """
import os, sys
if sys.argv[2] != "all":
    os.environ["ONEDNN_MAX_CPU_ISA"] = sys.argv[2]  # oneDNN reads it at its first operation
import torch
from torch import nn
from torchvision_layers import deploy, quantized

torch.manual_seed(0)
convs = [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, (3, 2), groups=16), nn.Conv2d(16, 8, 1)]
model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(336, 5)).eval()
for parameter in model.parameters():
    if parameter.dim() > 1:
        parameter.data = torch.where(torch.rand(parameter.shape) < 0.9, 1.0, -1.0) / parameter[0].numel()
x = torch.ones(2, 16, 8, 8)
batch = torch.cat([x, torch.rand(2, 16, 8, 8)])
if sys.argv[1] == "lowered":
    int8 = deploy.lower(quantized.quantize(model, [batch], engine="pt2e"), batch)
else:
    int8 = quantized.quantize(model, [batch], backend=sys.argv[1])
expected = model(x)
print(float((int8(x) - expected).abs().max() / expected.abs().max()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["all", "AVX2", "AVX512_CORE"])
@pytest.mark.parametrize("what", ["x86", "lowered"])
def test_onednn_without_vnni(what: str, isa: str, interpreter: Interpreter) -> None:
    """FBGEMM and onnxruntime ignore the variable; the tests below compute the sums that they would form."""
    result = interpreter.run(PROGRAM, what, isa)
    if what == "lowered" and isa != "all":
        assert "lowered int8 models need a CPU that adds products of integers in 32 bits" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) <= 0.01


def overflows(weight: np.ndarray) -> bool:
    """Whether 255 times two neighbours leaves 16 bits, as in ``vpmaddubsw``, for inputs or channels as neighbours."""
    rows = weight.reshape(len(weight), weight.shape[1], -1).astype(np.int64)
    orders = (rows.reshape(len(rows), -1), rows.swapaxes(1, 2).reshape(len(rows), -1))
    for order in orders:
        for first, second in pairwise(order.T):
            sums = 255 * (np.stack([first, second, first + second]))
            if np.any(sums > 32767) or np.any(sums < -32768):
                return True
    return False


def extreme_model() -> tuple[nn.Module, Tensor]:
    """Weights at both ends of their range next to each other."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 5)]
    for layer in layers:
        if hasattr(layer, "weight"):
            layer.weight.data = torch.where(torch.rand(layer.weight.shape) < 0.9, 0.1, -0.1)
    return nn.Sequential(*layers).eval(), torch.ones(2, 16, 6, 6)


def test_products_of_fbgemm() -> None:
    model, x = extreme_model()
    int8 = quantized.quantize(model, [x], backend="x86")
    weights = [m.weight().int_repr().numpy() for m in int8.modules() if hasattr(m, "weight") and callable(m.weight)]
    assert len(weights) == 3
    assert not any(map(overflows, weights))


@pytest.mark.xfail(strict=True, reason="pt2e has weights of eight bits; deploy.load makes onnxruntime split the sums")
def test_products_of_onnxruntime(tmp_path) -> None:
    model, x = extreme_model()
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="onnxruntime")
    file = deploy.export(int8, x, tmp_path / "model.onnx", format="onnx-qdq").path
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer]
    weights = [weight for weight in weights if weight.dtype == np.int8 and weight.ndim > 1]
    assert len(weights) == 3
    assert not any(map(overflows, weights))
