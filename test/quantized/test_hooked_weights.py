"""Weights that hooks of ``torch.nn.utils`` or norms in training compute: each entry works, or its advice does."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from torchvision_layers import deploy, quantized
from torchvision_layers.testing._checks._quantization import decibels

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")

X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
ENGINES = ["eager", "pt2e"]
HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "prune": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "prune channels": lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
    "prune bias": lambda conv: prune.random_unstructured(conv, "bias", 0.5),
    "twice": lambda conv: (prune.random_unstructured(conv, "weight", 0.2), prune.l1_unstructured(conv, "weight", 0.5)),
    "both": lambda conv: (prune.l1_unstructured(conv, "weight", 0.5), prune.random_unstructured(conv, "bias", 0.5)),
    "spectral norm": spectral_norm,
    "weight norm": weight_norm,
}


def hooked(hook: Callable[[nn.Module], object]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 4, 1)))
    hook(model[0])
    hook(model[3][0])
    model.train()(X)
    return model.eval()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("name", HOOKS)
def test_quantize(name: str, with_gradients: bool, engine: str) -> None:
    model = hooked(HOOKS[name])
    with torch.set_grad_enabled(with_gradients):
        expected = model(X).detach()
    int8 = quantized.quantize(model, [X], engine=engine)
    for each in (int8, copy.deepcopy(int8)):
        assert decibels(expected, each(X)) >= 30


@pytest.mark.parametrize("name", HOOKS)
def test_fold(name: str, tmp_path: Path) -> None:
    model = hooked(HOOKS[name])
    keys, expected = list(model.state_dict()), model(X).detach()
    folded = deploy.fold(model)
    assert torch.allclose(folded(X), expected, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert list(model.state_dict()) == keys
    assert torch.equal(model(X), expected)
    with pytest.raises(RuntimeError, match=r"0 computes its weight by a parametrization or a hook: call deploy.fold"):
        deploy.export(model, X, tmp_path / "model.pt", format="torchscript")
    deploy.export(folded, X, tmp_path / "model.pt", format="torchscript")
    deploy.export(model, X, tmp_path / "model.pt2", format="pt2")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*HOOKS, "parametrized spectral norm"])
def test_train(name: str, engine: str) -> None:
    model = hooked(HOOKS.get(name, parametrizations.spectral_norm))
    if engine == "eager" and name not in HOOKS:
        with pytest.raises(TypeError, match=r"; train deploy\.fold\(model\)\.requires_grad_\(\) instead, or pass"):
            quantized.prepare_qat(model, X)
        model = deploy.fold(model).requires_grad_()
    expected = model(X).detach()
    if engine == "eager" and name in HOOKS:
        message = r"weights must be parameters to be trained with engine='eager', hooks compute those of 0, 3\.0: to"
    elif engine == "pt2e" and "spectral" in name:
        message = r"weights must be computed from parameters alone to be trained with engine='pt2e', spectral norm"
    else:
        message = ""
    if message:
        with pytest.raises(ValueError, match=message) as caught:
            quantized.prepare_qat(model, X, engine=engine)
        text, _, other = str(caught.value).partition("; ")
        for call in re.findall(r"torch\.nn\.utils\.\S+\(.*?\('.*?'\), '.*?'\)", text):
            eval(call)
        assert ("engine='pt2e'" in other) == (engine == "eager" and "spectral" not in name)
        assert torch.allclose(model(X), expected, atol=1e-5)
    prepared = quantized.prepare_qat(model, X, engine=engine)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    for _ in range(2):
        prepared(X).square().mean().backward()
        optimizer.step()
    assert decibels(prepared.eval()(X), quantized.convert(prepared)(X)) >= 30


def test_bias_from_the_input_is_not_fused() -> None:
    """A graph for training cannot move the batch norm into such a convolution."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = self.conv.bias * x.mean()
            return self.norm(torch.nn.functional.conv2d(x, self.conv.weight, bias))

    prepared = quantized.prepare_qat(Shifted(), X, engine="pt2e")
    prepared(X).square().mean().backward()
    assert decibels(prepared.eval()(X).detach(), quantized.convert(prepared)(X)) >= 30
