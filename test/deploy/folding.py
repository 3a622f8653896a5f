"""What the tests of folding share: pieces of models as training leaves them, and the comparison with the model."""

import copy
import math

import torch
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn

__all__ = ["IMAGES", "Given", "assert_folds", "by_path", "conv", "norm", "norms", "pair", "relative", "trained"]

IMAGES = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(0))


class Given(nn.Module):
    """Modules by name, and a ``forward`` that is given: ``function(self, *inputs)``."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def trained(model: nn.Module) -> nn.Module:
    """Random statistics, affine parameters and scales, all far from what they start as; in eval mode."""
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if "Norm" in type(module).__name__:
                for tensor in (getattr(module, "weight", None), getattr(module, "bias", None)):
                    if isinstance(tensor, Tensor):
                        tensor.normal_().add_(tensor.sign(), alpha=0.2)
            scale = module.weight if isinstance(module, tnn.LayerScale) else getattr(module, "layer_scale", None)
            if isinstance(scale, nn.Parameter):
                scale.uniform_(0.5, 1.5)
    return model.eval()


def relative(got: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest value; infinite where types or shapes differ."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30)) if got.numel() else 0.0


def by_path(model: nn.Module) -> dict[str, str]:
    """The class of every module that calls no others."""
    return {path: type(m).__name__ for path, m in model.named_modules() if next(m.children(), None) is None}


def assert_folds(model: nn.Module, x: Tensor, *, batch: object = None, tolerance: float = 1e-10) -> nn.Module:
    """The folded model, after a comparison in float64 with the model, which must stay what it is; so must a second."""
    model, x = model.double().eval(), x.double()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(x.clone())
        folded = deploy.fold(model, batch)
        assert relative(folded(x.clone()), expected) <= tolerance
        assert torch.equal(model(x.clone()), expected)
        again = deploy.fold(folded, batch)
        assert torch.equal(again(x.clone()), folded(x.clone()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert repr(again) == repr(folded)
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    return folded


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


def pair(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(), norm(), *more)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
