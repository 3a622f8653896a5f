"""NaN in an input of an int8 model, which has no number for it, is an error; infinity is the end of the range."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return (self.conv(x).relu() + self.conv(y)).index_select(1, index)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "one": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), (X,)),
    "several": (Pair, (X, X.flip(0), torch.tensor([2, 0]))),
}


def _file(int8: nn.Module, inputs: tuple[Tensor, ...], path: Path, format: str | None) -> Callable[..., Any]:
    return deploy.load(deploy.export(int8, inputs, path, format=format).path)


def _make(way: str, model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> Callable[..., Any]:
    if way == "eager":
        return quantized.quantize(model, [inputs])
    if way == "onnx-qdq":
        int8 = quantized.quantize(model, [inputs], engine="pt2e", backend="onnxruntime")
        return _file(int8, inputs, folder / "model.onnx", way)
    int8 = quantized.quantize(model, [inputs], engine="pt2e")
    match way:
        case "lowered":
            return deploy.lower(int8, inputs)
        case "lowered file":
            return _file(int8, inputs, folder / "model.pt2", None)
        case "pt2":
            return _file(int8, inputs, folder / "model.pt2", "pt2")
    return int8


@pytest.mark.parametrize("way", ["eager", "pt2e", "lowered", "lowered file", "pt2", "onnx-qdq"])
@pytest.mark.parametrize("name", MODELS)
def test_nan_is_an_error(name: str, way: str, tmp_path: Path) -> None:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    run = _make(way, make().eval(), inputs, tmp_path)
    expected = run(*inputs)
    for i in [i for i, tensor in enumerate(inputs) if tensor.is_floating_point()]:
        broken = [tensor.clone() for tensor in inputs]
        broken[i][1, 2, 3, 4] = float("nan")
        with pytest.raises(ValueError, match=r"NaN in a tensor of shape \[2, 3, 12, 12\]"):
            run(*broken)
        broken[i][1, 2, 3, 4], broken[i][0, 0, 0, 0] = float("inf"), -float("inf")
        large = [torch.nan_to_num(tensor, posinf=1e6, neginf=-1e6) for tensor in broken]
        assert torch.equal(run(*broken), run(*large))
    assert torch.equal(run(*inputs), expected)


def test_float_models_compute_nan() -> None:
    model = MODELS["one"][0]().eval()
    lowered = deploy.lower(nn.Sequential(*model[:1]), X)
    assert lowered(torch.full_like(X, float("nan"))).isnan().all()


def test_finite_values_whose_sum_is_not() -> None:
    model = quantized.quantize(MODELS["one"][0]().eval(), [X])
    assert model(torch.full_like(X, 3e38)).isfinite().all()
