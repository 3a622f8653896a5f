"""Int8 conversion of trained models."""

from itertools import islice

from torch import nn

from torchvision_layers import deploy, quantized

from .data.loading import ImageLoader


def fold_unsupported(model: nn.Module) -> nn.Module:
    """``model``, or a folded copy if a layer has no quantizable twin; a ``WSConv2d`` folds to a plain convolution."""
    try:
        quantized.quantizable(model)
    except TypeError:
        return deploy.fold(model)
    return model


def calibrate(
    model: nn.Module, loader: ImageLoader, *, engine: str = "eager", backend: str = "x86", batches: int = 8
) -> nn.Module:
    """Quantizes a trained model, with ranges observed on the first ``batches`` of ``loader``."""
    return quantized.quantize(fold_unsupported(model), islice(loader, batches), engine=engine, backend=backend)
