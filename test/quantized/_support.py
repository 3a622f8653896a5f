"""Reference models for the quantization tests, with running statistics measured on random images."""

import sys
import warnings
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "references" / "classification"))
from models import build_model  # the reference models are scripts, not a package

__all__ = ["reference_model", "torchvision_int8", "with_running_stats"]


def with_running_stats(model: nn.Module, size: int) -> nn.Module:
    """Set the running statistics to those of one batch, so that activations have the ranges of a trained model."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, size, size))
    return model.eval()


def reference_model(name: str, size: int) -> nn.Module:
    return with_running_stats(build_model(name, 1000), size)


def torchvision_int8(name: str, state: dict[str, Tensor], batch: Tensor, backend: str) -> nn.Module:
    """Quantize torchvision's quantizable model with torchvision's own workflow."""
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
