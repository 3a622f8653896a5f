"""Reference models beside torchvision's of the same name, both small where torchvision's can be."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from models import MODELS
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf

SHARED = sorted(name for name in MODELS if hasattr(torchvision.models, name))


def small_convnext() -> nn.Module:
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 32, 2), CNBlockConfig(32, 64, 3), CNBlockConfig(64, None, 1)]
    return ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=10)


def small_efficientnet() -> nn.Module:
    stages, last_channels = _efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.5)
    return EfficientNet(stages, dropout=0.2, last_channel=last_channels, num_classes=10)


# Arguments of ours, and torchvision's model of that size. Its ResNets have one width only.
SMALL: dict[str, tuple[dict[str, Any], Callable[[], nn.Module]]] = {
    "convnext_tiny": ({"width": 8, "depths": (1, 2, 3, 1)}, small_convnext),
    "efficientnet_b0": ({"width_mult": 0.25, "depth_mult": 0.5}, small_efficientnet),
    **{
        name: ({"width_mult": 0.25}, partial(getattr(torchvision.models, name), num_classes=10, width_mult=0.25))
        for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
    },
}


# Arguments of those that torchvision does not have.
ALONE: dict[str, dict[str, Any]] = {"resnet50_gn_ws": {"width": 8}, "se_resnet50": {"width": 8}}


def small_ours(name: str) -> nn.Module:
    arguments = SMALL[name][0] if name in SMALL else ALONE.get(name, {})
    return MODELS[name](10, **arguments)


def small_theirs(name: str) -> nn.Module:
    return SMALL[name][1]() if name in SMALL else getattr(torchvision.models, name)(num_classes=10)


def fill(model: nn.Module) -> nn.Module:
    """Numbers that no constructor gives, and with which an image reaches the output."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("num_batches_tracked"):
                value.fill_(7)
            elif key.endswith(("bias", "running_mean")):
                value.uniform_(-0.3, 0.3)
            elif value.dim() == 1 or key.endswith("layer_scale"):
                value.uniform_(0.7, 1.3)
            else:
                nn.init.kaiming_normal_(value)
    return model
