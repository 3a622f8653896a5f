"""The reference models by name."""

from collections.abc import Callable

from torch import nn

from . import convnext, efficientnet, mobilenet, mobilenet_v3, resnet

__all__ = ["MODELS", "build_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "convnext_tiny": convnext.convnext_tiny,
    "efficientnet_b0": efficientnet.efficientnet_b0,
    "mobilenet_v2": mobilenet.mobilenet_v2,
    "mobilenet_v2_half": mobilenet.mobilenet_v2_half,
    "mobilenet_v3_large": mobilenet_v3.mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3.mobilenet_v3_small,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet50_gn_ws": resnet.resnet50_gn_ws,
    "resnet101": resnet.resnet101,
    "resnext50_32x4d": resnet.resnext50_32x4d,
    "se_resnet18": resnet.se_resnet18,
    "se_resnet50": resnet.se_resnet50,
    "wide_resnet50_2": resnet.wide_resnet50_2,
}


def build_model(name: str, num_classes: int) -> nn.Module:
    """The model called ``name``, untrained."""
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    return MODELS[name](num_classes)
