"""Pairs of a reference model and torchvision's model of the same name, in the size of the paper or small."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from models import MODELS, build_model
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.vision_transformer import VisionTransformer

SHARED = sorted(name for name in MODELS if hasattr(torchvision.models, name))


def small_convnext() -> nn.Module:
    stages = [CNBlockConfig(12, 24, 1), CNBlockConfig(24, 48, 1), CNBlockConfig(48, 96, 3), CNBlockConfig(96, None, 1)]
    return ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=10)


def small_efficientnet() -> nn.Module:
    stages, last_channels = _efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.5)
    return EfficientNet(stages, dropout=0.2, last_channel=last_channels, num_classes=10)


def small_mobilenet_v2() -> nn.Module:
    rows = [[1, 16, 1, 1], [6, 24, 1, 2], [6, 32, 2, 2], [6, 64, 2, 2], [6, 96, 2, 1], [6, 160, 2, 2], [6, 320, 1, 1]]
    return torchvision.models.MobileNetV2(num_classes=10, width_mult=0.25, inverted_residual_setting=rows)


QUARTER = {"depth_mult": 0.25}
#: Multipliers of our model, and torchvision's model of that size. torchvision cannot scale the channels of ResNets, or
#: the depth of MobileNetV3.
SMALL: dict[str, tuple[dict[str, float], Callable[[], nn.Module]]] = {
    "convnext_tiny": ({"width_mult": 0.125, "depth_mult": 1 / 3}, small_convnext),
    "densenet121": ({"width_mult": 0.25, "depth_mult": 0.25}, partial(DenseNet, 8, (2, 3, 6, 4), 16, num_classes=10)),
    "efficientnet_b0": ({"width_mult": 0.25, "depth_mult": 0.5}, small_efficientnet),
    "mobilenet_v2": ({"width_mult": 0.25, "depth_mult": 0.5}, small_mobilenet_v2),
    **{
        name: ({"width_mult": 0.25}, partial(getattr(torchvision.models, name), num_classes=10, width_mult=0.25))
        for name in ("mobilenet_v3_large", "mobilenet_v3_small")
    },
    "resnet18": (QUARTER, partial(ResNet, BasicBlock, [1, 1, 1, 1], 10)),
    "resnet34": (QUARTER, partial(ResNet, BasicBlock, [1, 1, 2, 1], 10)),
    "resnet50": (QUARTER, partial(ResNet, Bottleneck, [1, 1, 2, 1], 10)),
    "resnet101": (QUARTER, partial(ResNet, Bottleneck, [1, 1, 6, 1], 10)),
    "resnet152": (QUARTER, partial(ResNet, Bottleneck, [1, 2, 9, 1], 10)),
    "resnext50_32x4d": (QUARTER, partial(ResNet, Bottleneck, [1, 1, 2, 1], 10, groups=32, width_per_group=4)),
    "shufflenet_v2_x1_0": (QUARTER, partial(ShuffleNetV2, [1, 2, 1], [24, 116, 232, 464, 1024], 10)),
    "wide_resnet50_2": (QUARTER, partial(ResNet, Bottleneck, [1, 1, 2, 1], 10, width_per_group=128)),
    **{
        f"vit_b_{patch}": (
            {"width_mult": 0.125, "depth_mult": 0.25},
            partial(VisionTransformer, 224, patch, 3, 12, 96, 384, num_classes=10),
        )
        for patch in (16, 32)
    },
}


def image_size(name: str, height: int, width: int) -> tuple[int, int]:
    """The size of an image; torchvision's vision transformers take no other than that of their training."""
    return (224, 224) if name.startswith("vit") else (height, width)


def pair(name: str, is_small: bool) -> tuple[Callable[[], nn.Module], Callable[[], nn.Module]]:
    """Constructors of our model and of torchvision's."""
    if is_small:
        arguments, theirs = SMALL[name]
        return partial(build_model, name, 10, **arguments), theirs
    return partial(build_model, name, 10), partial(getattr(torchvision.models, name), num_classes=10)


def fill(model: nn.Module) -> Any:
    """Fills the state with values that differ from all initial ones and keep the output dependent on the image."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("num_batches_tracked"):
                value.fill_(7)
            elif key.endswith(("bias", "running_mean")):
                value.uniform_(-0.3, 0.3)
            elif value.dim() <= 1 or key.endswith("layer_scale"):
                value.uniform_(0.7, 1.3)
            else:
                nn.init.kaiming_normal_(value)
    return model
