"""The reference models for tests of quantization, as trained as measured statistics make them."""

import sys
import warnings
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "references" / "classification"))
from models import build_model  # the reference models are scripts, not a package

__all__ = ["by_torchvision", "reference", "settled"]


def settled(model: nn.Module, size: int) -> nn.Module:
    """Running statistics as a trained model has them: those of images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, size, size))
    return model.eval()


def reference(name: str, size: int) -> nn.Module:
    return settled(build_model(name, 1000), size)


def by_torchvision(name: str, state: dict[str, Tensor], batch: Tensor, backend: str) -> nn.Module:
    """Torchvision's quantizable model, its way."""
    model = torchvision.models.get_model(f"quantized_{name}", weights=None, quantize=False).eval()
    model.load_state_dict(state)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model.fuse_model(is_qat=False)
        model.qconfig = torch.ao.quantization.get_default_qconfig(backend)
        torch.ao.quantization.prepare(model, inplace=True)
        model(batch)
        torch.ao.quantization.convert(model, inplace=True)
    return model
