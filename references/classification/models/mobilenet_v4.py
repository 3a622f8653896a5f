"""MobileNetV4.

`MobileNetV4: Universal Models for the Mobile Ecosystem <https://arxiv.org/abs/2404.10518>`_, table 11.
"""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from torchvision_layers import nn as tnn

from .scaling import check_multipliers, round_channels, scale_depth


class Row(NamedTuple):
    """Blocks of one kind: kernel sizes of the two depthwise convolutions, expansion, channels, repeats, stride."""

    start: int | None
    middle: int | None
    expand_ratio: float
    channels: int
    repeats: int = 1
    stride: int = 1


#: Kernel size, channels and stride of the convolutions before the blocks.
STEM = ((3, 32, 2), (3, 32, 2), (1, 32, 1), (3, 96, 2), (1, 64, 1))
SMALL = (
    Row(5, 5, 3, 96, stride=2),
    Row(None, 3, 2, 96, repeats=4),
    Row(3, None, 4, 96),
    Row(3, 3, 6, 128, stride=2),
    Row(5, 5, 4, 128),
    Row(None, 5, 4, 128),
    Row(None, 5, 3, 128),
    Row(None, 3, 4, 128, repeats=2),
)


class MobileNetV4(nn.Module):
    """Convolutions, universal inverted bottlenecks, a convolution, global pooling and a classifier of two layers.

    Args:
        rows: the blocks.
        num_classes: size of the output.
        width_mult: multiplies all channels.
        depth_mult: multiplies the repeats of every row, rounded up.
        dropout: probability of dropping a feature before the last layer.
    """

    def __init__(
        self,
        rows: tuple[Row, ...],
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        channels, features = 3, list[nn.Module]()
        conv = partial(tnn.ConvNormAct, activation_layer=nn.ReLU)
        for kernel_size, base_channels, stride in STEM:
            out_channels = round_channels(base_channels * width_mult)
            features.append(conv(channels, out_channels, kernel_size, stride))
            channels = out_channels
        for row in rows:
            out_channels = round_channels(row.channels * width_mult)
            for i in range(scale_depth(row.repeats, depth_mult)):
                stride = row.stride if i == 0 else 1
                expand_ratio = round_channels(channels * row.expand_ratio) / channels
                features.append(
                    tnn.UniversalInvertedBottleneck(channels, out_channels, row.start, row.middle, stride, expand_ratio)
                )
                channels = out_channels
        last_channels = round_channels(960 * width_mult)
        features.append(conv(channels, last_channels, 1))
        self.features = nn.Sequential(*features)
        hidden = round_channels(1280 * width_mult)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.head = conv(last_channels, hidden, 1)
        self.classifier = nn.Sequential(nn.Flatten(1), nn.Dropout(dropout), nn.Linear(hidden, num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.avgpool(self.features(x))))


def mobilenet_v4_conv_small(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> MobileNetV4:
    return MobileNetV4(SMALL, num_classes, width_mult, depth_mult)
