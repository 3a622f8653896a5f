"""ResNet and its variants.

`Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_, table 1. Child modules have
torchvision's names, so its checkpoints load.
"""

from collections.abc import Callable
from functools import partial
from math import gcd

import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn

from .scaling import check_multipliers, scale_channels, scale_depth


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, global pooling and a linear classifier.

    Args:
        block: ``tnn.BasicBlock`` or ``tnn.Bottleneck``.
        depths: blocks in each stage.
        num_classes: size of the output.
        width_mult: multiplies the 64 channels of the stem; each stage has twice the planes of the previous one.
        depth_mult: multiplies the blocks of every stage, rounded up.
        groups: groups of the 3×3 convolutions.
        width_per_group: ``base_width`` of the blocks.
        norm_layer: constructor of the norms, called with their channels.
        conv_layer: constructor of the 3×3 convolutions, with the signature of ``nn.Conv2d``.
        stem_layer: constructor of the convolution in the stem; ``None`` for ``conv_layer``.
        se_layer: constructor of the channel attention in each block, called with its channels.
        stochastic_depth: probability of dropping the last block's branch; increases linearly from zero.
    """

    def __init__(
        self,
        block: type[tnn.BasicBlock] | type[tnn.Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        conv_layer: Callable[..., nn.Module] = nn.Conv2d,
        stem_layer: Callable[..., nn.Module] | None = None,
        se_layer: Callable[..., nn.Module] | None = None,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        base_channels = scale_channels(64, width_mult)
        self.conv1 = (stem_layer or conv_layer)(3, base_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        blocks_of = [scale_depth(depth, depth_mult) for depth in depths]
        channels = base_channels
        for stage, drops in enumerate(tnn.stochastic_depth_schedule(stochastic_depth, blocks_of)):
            planes, blocks = base_channels * 2**stage, []
            for i, drop in enumerate(drops):
                blocks.append(
                    block(
                        channels,
                        planes,
                        stride=2 if stage > 0 and i == 0 else 1,
                        groups=groups,
                        base_width=width_per_group,
                        norm_layer=norm_layer,
                        conv_layer=conv_layer,
                        se_layer=se_layer,
                        stochastic_depth=drop,
                    )
                )
                channels = planes * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    return ResNet(tnn.BasicBlock, (2, 2, 2, 2), num_classes, width_mult, depth_mult)


def resnet34(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    return ResNet(tnn.BasicBlock, (3, 4, 6, 3), num_classes, width_mult, depth_mult)


def resnet50(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    return ResNet(tnn.Bottleneck, (3, 4, 6, 3), num_classes, width_mult, depth_mult)


def resnet101(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    return ResNet(tnn.Bottleneck, (3, 4, 23, 3), num_classes, width_mult, depth_mult)


def resnet152(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    return ResNet(tnn.Bottleneck, (3, 8, 36, 3), num_classes, width_mult, depth_mult)


# Variants


def se_resnet18(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    return ResNet(tnn.BasicBlock, (2, 2, 2, 2), num_classes, width_mult, depth_mult, se_layer=tnn.SqueezeExcitation)


def se_resnet50(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    return ResNet(tnn.Bottleneck, (3, 4, 6, 3), num_classes, width_mult, depth_mult, se_layer=tnn.SqueezeExcitation)


def resnet50_gn_ws(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    """Group normalization and Weight Standardization (arXiv 1903.10520), which do not need large batches."""
    check_multipliers(width_mult, depth_mult)
    norm = partial(nn.GroupNorm, gcd(32, scale_channels(64, width_mult)))
    return ResNet(
        tnn.Bottleneck, (3, 4, 6, 3), num_classes, width_mult, depth_mult, norm_layer=norm, conv_layer=tnn.WSConv2d
    )


def resnext50_32x4d(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    return ResNet(tnn.Bottleneck, (3, 4, 6, 3), num_classes, width_mult, depth_mult, groups=32, width_per_group=4)


def wide_resnet50_2(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    return ResNet(tnn.Bottleneck, (3, 4, 6, 3), num_classes, width_mult, depth_mult, width_per_group=128)
