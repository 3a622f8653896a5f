"""MobileNet.

`MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications
<https://arxiv.org/abs/1704.04861>`_, table 1. The last convolution has stride 1: with the stride of 2 in the
table, its output would not have the size in the same row.
"""

import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn

from .scaling import check_multipliers, round_channels, scale_depth

# Channels, repeats and stride of each stage: the rows of table 1.
STAGES = (
    (64, 1, 1),
    (128, 2, 2),
    (256, 2, 2),
    (512, 6, 2),
    (1024, 2, 2),
)


class MobileNetV1(nn.Module):
    """A convolution, five stages of depthwise separable convolutions, global pooling and a linear classifier.

    Args:
        num_classes: size of the output.
        width_mult: multiplies the channels of every stage.
        depth_mult: multiplies the layers of every stage, rounded up.
    """

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        channels = round_channels(32 * width_mult)
        features: list[nn.Module] = [tnn.ConvNormAct(3, channels, stride=2)]
        for base_channels, repeats, stride in STAGES:
            out_channels = round_channels(base_channels * width_mult)
            for i in range(scale_depth(repeats, depth_mult)):
                features.append(tnn.DepthwiseSeparableConv(channels, out_channels, stride=stride if i == 0 else 1))
                channels = out_channels
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v1(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> MobileNetV1:
    return MobileNetV1(num_classes, width_mult, depth_mult)
