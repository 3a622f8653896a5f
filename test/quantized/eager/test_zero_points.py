"""Convolutions that get inputs of the same scale and another zero point, for which qnnpack keeps its padding."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, conv: type[nn.Module] = nn.Conv2d) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = conv(3, 8, 3, padding=1), conv(8, 8, 3, padding=1)


class BothSigns(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return torch.cat([self.last(y), self.last(-y)], 1)


class Shifted(Net):
    """Adds a constant, except to a single image."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if x.shape[0] > 1:
            y = y + 1
        output: Tensor = self.last(y)
        return output


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d])
def test_several_zero_points(conv: type[nn.Module], backend: str) -> None:
    model, x = BothSigns(conv).eval(), X[..., 0] if conv is nn.Conv1d else X
    int8 = quantized.quantize(model, [x], backend=backend, ranges="minmax")
    assert decibels(model(x), int8(x)) > 30
    assert decibels(model(x), int8(x)) > 30  # with the weight that the last call packed


@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
def test_zero_point_that_depends_on_the_batch(backend: str) -> None:
    model = Shifted().eval()
    int8 = quantized.quantize(model, [X], backend=backend)
    for x in (X[:1], X, X[:1]):
        assert decibels(model(x), int8(x)) > 30


def test_trained_models_follow_zero_points() -> None:
    prepared = quantized.prepare_qat(BothSigns(), X, backend="qnnpack")
    prepared(X).sum().backward()
    int8 = quantized.convert(prepared)
    assert decibels(prepared.eval()(X).detach(), int8(X)) > 30
    state = quantized.convert(prepared)
    state.load_state_dict(int8.state_dict())
    assert torch.equal(state(X), int8(X))


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")
def test_torchscript(tmp_path: Path) -> None:
    model = BothSigns().eval()
    int8 = quantized.quantize(model, [X], backend="qnnpack", ranges="minmax")
    with pytest.raises(RuntimeError, match="last gets inputs with several zero points, .* trace the model"):
        torch.jit.script(int8)
    traced = deploy.load(deploy.export(int8, X, tmp_path / "model.pt").path)
    for x in (X, X[:1]):
        assert decibels(model(x), traced(x)) > 30
