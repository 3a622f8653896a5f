"""Models that keep tensors of their own forward, and int8 models inside others."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
ENGINES = ["eager", "pt2e"]


class Keeping(nn.Module):
    def __init__(self, form: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv, self.form = nn.Conv2d(3, 8, 3), form

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.features = self.form(y)
        return y.relu()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", [lambda y: y, lambda y: [y, (y,)], lambda y: {"y": y}])
def test_features_of_the_last_call(form: Callable[[Tensor], object], engine: str) -> None:
    model = Keeping(form).eval()
    expected = model(X)
    assert decibels(expected.detach(), quantized.quantize(model, [X], engine=engine)(X)) >= 30
    assert deploy.fold(model, X)(X).shape == expected.shape
    prepared = quantized.prepare_qat(model, X, engine=engine)
    prepared(X).sum().backward()
    assert quantized.convert(prepared)(X).shape == expected.shape


@pytest.mark.parametrize("engine", ENGINES)
def test_float_head_is_trained_on_int8_backbone(engine: str) -> None:
    backbone = quantized.quantize(tnn.ConvNormAct(3, 8).eval(), [X], engine=engine)
    head = nn.Sequential(nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
    model = nn.ModuleDict({"body": nn.Sequential(backbone), "head": head}).train()
    expected = backbone(X)
    assert head.training
    assert not any(module.training for module in (backbone, *backbone.children()) if module is backbone)
    model["head"](model["body"](X)).sum().backward()
    assert head[0].weight.grad is not None
    assert torch.equal(backbone(X), expected)
    with pytest.raises(RuntimeError, match="an int8 model cannot be trained"):
        backbone.train()


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm2d, (3, 3, 6, 5)), (nn.BatchNorm3d, (3, 3, 4, 6, 5))])
def test_int8_norm_in_torchscript(norm: type[nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    x = torch.randn(shape)
    int8 = quantized.quantize(nn.Sequential(norm(3), nn.ReLU()).eval(), [x])
    file = deploy.load(deploy.export(int8, x, tmp_path / "model.pt").path)
    assert torch.equal(file(x), int8(x))


def test_average_momentum_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.BatchNorm2d(8, momentum=None))
    with pytest.raises(ValueError, match=r"1, 2 have None, the average over all batches: set momentum=0\.1"):
        quantized.prepare_qat(model, X, engine="pt2e")


class CachesExpanded(nn.Module):
    """Keeps an expanded tensor, to whose memory ``load_state_dict`` cannot write."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grid = nn.Conv2d(3, 3, 3, padding=1), torch.rand(10, 1).expand(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + self.grid)


@pytest.mark.parametrize("engine", ENGINES)
def test_states_with_expanded_tensors(engine: str) -> None:
    model = CachesExpanded().eval()
    int8, other = (quantized.quantize(model, [x], engine=engine) for x in (X, 2 * X))
    other.load_state_dict(int8.state_dict())
    assert torch.equal(other(X), int8(X))
