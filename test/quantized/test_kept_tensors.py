"""Models that keep tensors of their own forward, or have weights that hooks compute; and int8 models inside others."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm

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


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "prune": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "prune channels": lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
    "prune bias": lambda conv: prune.random_unstructured(conv, "bias", 0.5),
    "twice": lambda conv: (prune.random_unstructured(conv, "weight", 0.2), prune.l1_unstructured(conv, "weight", 0.5)),
    "spectral norm": spectral_norm,
}


def hooked(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    HOOKS[name](model[0])
    return model


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("name", HOOKS)
def test_weights_of_hooks(name: str, with_gradients: bool, engine: str) -> None:
    model = hooked(name).eval()
    with torch.set_grad_enabled(with_gradients):
        expected = model(X).detach()
    int8 = quantized.quantize(model, [X], engine=engine)
    for each in (int8, copy.deepcopy(int8)):
        assert decibels(expected, each(X)) >= 30


def test_weight_norm_by_hooks() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3))).eval()
    assert decibels(model(X).detach(), quantized.quantize(model, [X])(X)) >= 30


def test_training_with_hooks() -> None:
    with pytest.raises(ValueError, match=r"hooks compute those of 0: call prune\.remove.*engine='pt2e'"):
        quantized.prepare_qat(hooked("prune"), X)
    prepared = quantized.prepare_qat(hooked("prune"), X, engine="pt2e")
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    prepared(X).square().sum().backward()
    optimizer.step()
    assert decibels(prepared.eval()(X), quantized.convert(prepared)(X)) >= 40


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
