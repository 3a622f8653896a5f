"""Int8 on processors without VNNI, which add two products of 8 bits in 16 bits: no such sum may overflow."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers.deploy.formats import onnx as onnx_format
from torchvision_layers.testing._checks._quantization import decibels

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


def weights_in_file(int8: nn.Module, x: Tensor, folder: Path) -> list[np.ndarray]:
    file = deploy.export(int8, x, folder / "model.onnx", format="onnx-qdq").path
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer]
    return [weight for weight in weights if weight.dtype == np.int8 and weight.ndim > 1]


def test_products_of_onnxruntime(tmp_path: Path) -> None:
    model, x = extreme_model()
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="onnxruntime")
    weights = weights_in_file(int8, x, tmp_path)
    assert len(weights) == 3
    assert not any(map(overflows, weights))


def network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    depthwise = nn.Conv2d(16, 16, 3, groups=16)
    convs = [
        nn.Conv2d(5, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        depthwise,
        nn.ReLU(),
        nn.Conv2d(16, 8, (3, 2), groups=2),
    ]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(8 * 2 * 3, 5)), torch.randn(16, 5, 8, 8)


def largest_sums(weights: list[np.ndarray]) -> list[int]:
    """The largest sum of two weights of one sign that MLAS adds: neighbours in the order of positions and channels."""
    largest = []
    for weight in weights:
        rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1).astype(int)
        rows = np.pad(rows, [(0, 0), (0, rows.shape[1] % 2)]).reshape(len(rows), -1, 2)
        largest.append(int(np.maximum(np.clip(rows, 0, None).sum(2), np.clip(-rows, 0, None).sum(2)).max()))
    return largest


@pytest.mark.parametrize(
    "options",
    [{}, {"rounding": "gptq"}, {"per_channel": False}, {"rounding": "gptq", "per_channel": False}],
    ids=["default", "gptq", "one scale", "gptq, one scale"],
)
def test_weights_for_onnxruntime_are_bounded(options: dict[str, Any], tmp_path: Path) -> None:
    model, x = network()
    int8 = quantized.quantize(model.eval(), [x], engine="pt2e", backend="onnxruntime", **options)
    sums = largest_sums(weights_in_file(int8, x, tmp_path))
    assert len(sums) == 4
    assert 126 <= min(sums) <= max(sums) <= 128
    assert decibels(model(x), int8(x)) > 28
    assert quantized.report(int8).needs_vnni is False
    assert deploy.load(tmp_path / "model.onnx").metadata["quantization"]["needs_vnni"] is False


def test_choosing_ranges_leaves_rounded_weights_alone(tmp_path: Path) -> None:
    """The choice runs the model after GPTQ has rounded a pair to 128 steps, one more than the range had."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 3)).eval()
    x = torch.randn(16, 1, 9, 9) + 0.3 * torch.randn(16, 8, 9, 9)
    weights = {}
    for ranges in ("minmax", "auto"):
        int8 = quantized.quantize(
            model, [x], engine="pt2e", backend="onnxruntime", rounding="gptq", ranges=ranges, check=False
        )
        (weights[ranges],) = weights_in_file(int8, x, tmp_path)
    assert largest_sums([weights["minmax"]]) == [128]
    assert np.array_equal(weights["minmax"], weights["auto"])


def test_vnni_uses_the_whole_range(tmp_path: Path) -> None:
    model, x = network()
    kwargs: dict[str, Any] = {"engine": "pt2e", "backend": "onnxruntime"}
    int8 = quantized.quantize(model.eval(), [x], vnni=True, **kwargs)
    weights = weights_in_file(int8, x, tmp_path)
    assert all(np.abs(weight).reshape(len(weight), -1).max(1).min() == 127 for weight in weights)
    assert max(largest_sums(weights)) > 128
    assert decibels(model(x), int8(x)) > decibels(model(x), quantized.quantize(model, [x], **kwargs)(x))
    report = quantized.report(int8)
    assert report.needs_vnni is True
    assert report.to_dict()["needs_vnni"] is True
    assert "needs VNNI on x86" in str(report)
    assert deploy.load(tmp_path / "model.onnx").metadata["quantization"]["needs_vnni"] is True


@pytest.mark.parametrize("vnni", [False, True])
def test_trained_weights_for_onnxruntime(vnni: bool, tmp_path: Path) -> None:
    """Weights that grow after their ranges were frozen do not overflow either."""
    model, x = network()
    prepared = quantized.prepare_qat(model, x, engine="pt2e", backend="onnxruntime", vnni=vnni)
    prepared(x)
    quantized.freeze(prepared)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.mul_(1.5 if parameter.dim() > 1 else 1)
    expected = prepared.eval()(x)
    int8 = quantized.convert(prepared, check=False)
    sums = largest_sums(weights_in_file(int8, x, tmp_path))
    assert (max(sums) > 128) is vnni
    if not vnni:
        assert decibels(expected, int8(x)) > 28


@pytest.mark.parametrize("is_loaded_with_vnni", [True, False])
@pytest.mark.parametrize("needs_vnni", [True, False])
def test_only_files_that_need_vnni_get_unsigned_weights(
    needs_vnni: bool, is_loaded_with_vnni: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network()
    int8 = quantized.quantize(model.eval(), [x], engine="pt2e", backend="onnxruntime", vnni=needs_vnni)
    path = deploy.export(int8, x, tmp_path / "model.onnx", format="onnx-qdq").path
    monkeypatch.setattr(onnx_format, "has_vnni", lambda: is_loaded_with_vnni)
    sessions = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, content: bytes, options: onnxruntime.SessionOptions, **kwargs: Any) -> None:
            super().__init__(content, options, **kwargs)
            sessions.append(self)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    loaded = deploy.load(path)
    options = sessions[-1].get_session_options()
    try:
        is_unsigned = options.get_session_config_entry("session.x64quantprecision") == "1"
    except RuntimeError:  # not set
        is_unsigned = False
    assert is_unsigned is (needs_vnni and not is_loaded_with_vnni)
    torch.testing.assert_close(loaded(x), int8(x), rtol=0, atol=0.02 * float(int8(x).abs().max()))


@pytest.mark.parametrize(
    "choice", [{"backend": "x86"}, {"engine": "pt2e"}, {"engine": "pt2e", "backend": "x86"}], ids=str
)
def test_vnni_with_another_backend(choice: dict[str, str]) -> None:
    model, x = network()
    with pytest.raises(ValueError, match="vnni must be False except for engine='pt2e' with backend='onnxruntime'.*x86"):
        quantized.quantize(model.eval(), [x], vnni=True, **choice)
    with pytest.raises(ValueError, match="vnni must be False except for"):
        quantized.prepare_qat(model, x, vnni=True, **choice)


def test_vnni_must_be_bool() -> None:
    model, x = network()
    with pytest.raises(TypeError, match="vnni must be"):
        quantized.quantize(model.eval(), [x], engine="pt2e", backend="onnxruntime", vnni="avx512")
