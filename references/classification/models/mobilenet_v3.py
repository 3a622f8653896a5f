"""MobileNetV3.

`Searching for MobileNetV3 <https://arxiv.org/abs/1905.02244>`_, tables 1 and 2. Child modules have
torchvision's names, so its checkpoints load.
"""

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn

from .scaling import check_multipliers, round_channels, scale_depth

RE, HS = nn.ReLU, nn.Hardswish


class Row(NamedTuple):
    """A row of the tables, which is one block."""

    kernel_size: int
    expanded: int
    channels: int
    squeezes: bool
    activation: type[nn.Module]
    stride: int


LARGE: tuple[Row, ...] = (
    Row(3, 16, 16, False, RE, 1),
    Row(3, 64, 24, False, RE, 2),
    Row(3, 72, 24, False, RE, 1),
    Row(5, 72, 40, True, RE, 2),
    Row(5, 120, 40, True, RE, 1),
    Row(5, 120, 40, True, RE, 1),
    Row(3, 240, 80, False, HS, 2),
    Row(3, 200, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 480, 112, True, HS, 1),
    Row(3, 672, 112, True, HS, 1),
    Row(5, 672, 160, True, HS, 2),
    Row(5, 960, 160, True, HS, 1),
    Row(5, 960, 160, True, HS, 1),
)
SMALL: tuple[Row, ...] = (
    Row(3, 16, 16, True, RE, 2),
    Row(3, 72, 24, False, RE, 2),
    Row(3, 88, 24, False, RE, 1),
    Row(5, 96, 40, True, HS, 2),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 120, 48, True, HS, 1),
    Row(5, 144, 48, True, HS, 1),
    Row(5, 288, 96, True, HS, 2),
    Row(5, 576, 96, True, HS, 1),
    Row(5, 576, 96, True, HS, 1),
)


def scale_rows(rows: tuple[Row, ...], depth_mult: float) -> Iterator[Row]:
    """The rows of a deeper or shallower model.

    The tables list blocks, not stages. Here, a stage is a sequence of rows with the same kernel size and channels. Its
    number of blocks is multiplied and rounded up: its last rows are removed, or its last row is repeated.
    """
    for _, group in groupby(rows, key=lambda row: (row.kernel_size, row.channels)):
        stage = list(group)
        depth = scale_depth(len(stage), depth_mult)
        yield from [*stage, *[stage[-1]._replace(stride=1)] * depth][:depth]


class MobileNetV3(nn.Module):
    """A convolution, inverted residuals, a convolution, global pooling and a classifier of two layers.

    Args:
        rows: ``LARGE`` or ``SMALL``.
        last_channels: features between the two layers of the classifier.
        num_classes: size of the output.
        width_mult: multiplies all channels.
        depth_mult: multiplies the blocks of every stage, as :func:`scale_rows` does.
        dropout: probability of dropping a feature before the last layer.
    """

    def __init__(
        self,
        rows: tuple[Row, ...],
        last_channels: int,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        # The paper averages batch statistics with a decay of 0.99, and uses TensorFlow, whose default eps is 0.001.
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        conv = partial(tnn.ConvNormAct, norm_layer=norm, activation_layer=nn.Hardswish)
        channels = round_channels(16 * width_mult)
        features: list[nn.Module] = [conv(3, channels, stride=2)]
        for row in scale_rows(rows, depth_mult):
            expanded = round_channels(row.expanded * width_mult)
            out_channels = round_channels(row.channels * width_mult)
            features.append(
                tnn.InvertedResidual(
                    channels,
                    out_channels,
                    row.stride,
                    expanded / channels,
                    norm,
                    kernel_size=row.kernel_size,
                    activation_layer=row.activation,
                    se_layer=partial(
                        tnn.SqueezeExcitation,
                        squeeze_channels=round_channels(expanded // 4),
                        scale_activation=nn.Hardsigmoid,
                    )
                    if row.squeezes
                    else None,
                )
            )
            channels = out_channels
        features.append(conv(channels, 6 * channels, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        last_channels = round_channels(last_channels * width_mult)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, last_channels),
            nn.Hardswish(),
            nn.Dropout(dropout),
            nn.Linear(last_channels, num_classes),
        )

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v3_large(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> MobileNetV3:
    return MobileNetV3(LARGE, 1280, num_classes, width_mult, depth_mult)


def mobilenet_v3_small(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> MobileNetV3:
    return MobileNetV3(SMALL, 1024, num_classes, width_mult, depth_mult)
