"""The models and layers to write to files."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchvision_layers import nn as tnn

from ..conformance.specs import SPECS

__all__ = [
    "LAYERS_WITH_TWINS",
    "MODELS",
    "MODELS_AT",
    "ROOT",
    "SLOW_MODELS",
    "WITHOUT_TWINS",
    "batch_of",
    "images_of",
    "reference_to",
    "samples_of",
    "size_of",
]

ROOT = Path(__file__).parent.parent.parent
MODELS_AT = ROOT / "references" / "classification" / "models"

#: The file that defines each model.
MODELS = {
    "convnext_tiny": "convnext",
    "convnextv2_atto": "convnext_v2",
    "densenet121": "densenet",
    "efficientnet_b0": "efficientnet",
    **{f"efficientnet_lite{i}": "efficientnet_lite" for i in range(5)},
    "mobilenet_v1": "mobilenet_v1",
    "mobilenet_v2": "mobilenet",
    "mobilenet_v2_coord": "mobilenet",
    "mobilenet_v2_half": "mobilenet",
    "mobilenet_v3_large": "mobilenet_v3",
    "mobilenet_v3_small": "mobilenet_v3",
    "mobilenet_v4_conv_small": "mobilenet_v4",
    "mobileone_s0": "mobileone",
    "nf_resnet50": "nf_resnet",
    "repvgg_a0": "repvgg",
    "resnet18": "resnet",
    "resnet26_sasa": "sasa_resnet",
    "resnet34": "resnet",
    "resnet50": "resnet",
    "resnet50_gn_ws": "resnet",
    "resnet101": "resnet",
    "resnet152": "resnet",
    "resnext50_32x4d": "resnet",
    "se_resnet18": "resnet",
    "se_resnet50": "resnet",
    "shufflenet_v2_x1_0": "shufflenet",
    "swin_t": "swin",
    "swin_v2_t": "swin",
    "vit_b_16": "vit",
    "vit_b_32": "vit",
    "vit_tiny": "vit",
    "wide_resnet50_2": "resnet",
}
#: Models that contain a layer without a twin.
WITHOUT_TWINS = {
    "convnextv2_atto": "GlobalResponseNorm",
    "mobilenet_v2_coord": "CoordConv2d",
    "mobilenet_v4_conv_small": "UniversalInvertedBottleneck",
    "mobileone_s0": "RepConv",
    "nf_resnet50": "SWSConv2d",
    "repvgg_a0": "RepConv",
    "resnet26_sasa": "MultiHeadedSpatialAttention",
    "resnet50_gn_ws": "WSConv2d",
    "swin_t": "PatchMerging",
    "swin_v2_t": "PatchMerging",
    "vit_b_16": "PatchEmbedding",
    "vit_b_32": "PatchEmbedding",
    "vit_tiny": "PatchEmbedding",
}
#: Tested only by ``make test-all``: they use the same classes as another model, with other numbers.
SLOW_MODELS = {
    *(f"efficientnet_lite{i}" for i in range(1, 5)),
    *("mobilenet_v2_half", "mobilenet_v3_large", "resnet34", "resnet101", "resnet152", "resnext50_32x4d"),
    *("se_resnet18", "vit_b_16", "vit_b_32", "wide_resnet50_2"),
}
LAYERS = [name for name in tnn.__all__ if isinstance(getattr(tnn, name), type)]
LAYERS_WITH_TWINS = {spec.name: spec for spec in SPECS if spec.twin is not None and spec.name in tnn.__all__}


def size_of(name: str) -> dict[str, Any]:
    """The arguments that make a model small."""
    return {"num_classes": 5, "width_mult": 0.25, "depth_mult": 0.1 if name in ("resnet101", "resnet152") else 0.3}


def reference_to(name: str) -> str:
    """The reference to a model, as the command expects it."""
    return f"{MODELS_AT / MODELS[name]}.py:{name}"


def samples_of(name: str) -> dict[str, Any]:
    """The samples of a stable layer, by id, whose arguments another interpreter can load."""
    spec = next(spec for spec in SPECS if spec.name == name)
    return {sample.id: sample for sample in spec.samples if _is_plain(sample.kwargs)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, partial):
        return _is_plain([value.func, value.args, value.keywords])
    parts = [value, *value.modules()] if isinstance(value, nn.Module) else [value]
    classes = [part if isinstance(part, type) else type(part) for part in parts]
    is_available = all(cls.__module__.split(".")[0] in ("builtins", "torch") for cls in classes)
    return is_available and not (callable(value) and not isinstance(value, (type, nn.Module)))


def images_of(name: str) -> torch.Tensor:
    """Images that a model takes; patches must divide those of vision transformers."""
    return batch_of((2, 3, 32, 64) if name.startswith("vit") else (2, 3, 33, 40))


def batch_of(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))
