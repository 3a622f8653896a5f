"""MobileNetV2.

`MobileNetV2: Inverted Residuals and Linear Bottlenecks <https://arxiv.org/abs/1801.04381>`_, table 2. Child modules
have torchvision's names, so its checkpoints load.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from .scaling import check_multipliers, round_channels, scale_depth

# Expansion, channels, repeats and stride of each stage: the rows of table 2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """A convolution, seven stages of inverted residuals, a convolution, global pooling and a linear classifier.

    Args:
        num_classes: size of the output.
        width_mult: multiplies the channels of every stage.
        depth_mult: multiplies the blocks of every stage, rounded up.
        dropout: probability of dropping a feature before the classifier.
        stem_layer: constructor of the first convolution, with the signature of ``nn.Conv2d``.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        dropout: float = 0.2,
        *,
        stem_layer: Callable[..., nn.Module] = nn.Conv2d,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        conv = partial(tnn.ConvNormAct, activation_layer=nn.ReLU6)
        channels = round_channels(32 * width_mult)
        features: list[nn.Module] = [conv(3, channels, stride=2, conv_layer=stem_layer)]
        for expand_ratio, base_channels, repeats, stride in STAGES:
            out_channels = round_channels(base_channels * width_mult)
            for i in range(scale_depth(repeats, depth_mult)):
                features.append(tnn.InvertedResidual(channels, out_channels, stride if i == 0 else 1, expand_ratio))
                channels = out_channels
        last_channels = round_channels(1280 * max(1.0, width_mult))
        features.append(conv(channels, last_channels, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last_channels, num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v2(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> MobileNetV2:
    return MobileNetV2(num_classes, width_mult, depth_mult)


# Variants


def mobilenet_v2_half(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> MobileNetV2:
    check_multipliers(width_mult, depth_mult)
    return MobileNetV2(num_classes, 0.5 * width_mult, depth_mult)


def mobilenet_v2_coord(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> MobileNetV2:
    """CoordConv (arXiv 1807.03247): the first convolution has pixel coordinates as input."""
    return MobileNetV2(num_classes, width_mult, depth_mult, stem_layer=enn.CoordConv2d)
