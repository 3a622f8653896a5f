"""ShuffleNet V2.

`ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design <https://arxiv.org/abs/1807.11164>`_,
figure 3 and table 5. Child modules have torchvision's names, so its checkpoints load.
"""

import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn

from .scaling import check_multipliers, scale_depth

# Channels and repeats of each stage for the size 1×: the rows of table 5.
STAGES = ((116, 4), (232, 8), (464, 4))


class ShuffleUnit(nn.Module):
    """Half of the channels passes a branch, the other half stays, and both are shuffled (figure 3 c).

    With stride 2, both halves of the output come from a branch of the whole input (figure 3 d).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, even.
        stride: stride of the depthwise convolutions, ``1`` or ``2``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.reduction = stride
        half = out_channels // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(*self._depthwise(in_channels, stride), *tnn.ConvNormAct(in_channels, half, 1))
        self.branch2 = nn.Sequential(
            *tnn.ConvNormAct(in_channels if stride > 1 else half, half, 1),
            *self._depthwise(half, stride),
            *tnn.ConvNormAct(half, half, 1),
        )
        self.shuffle = nn.ChannelShuffle(2)

    @staticmethod
    def _depthwise(channels: int, stride: int) -> nn.Sequential:
        return tnn.ConvNormAct(channels, channels, 3, stride, groups=channels, activation_layer=None)

    def forward(self, x: Tensor) -> Tensor:
        if self.reduction == 1:
            kept, x = x.chunk(2, 1)
            x = torch.cat((kept, self.branch2(x)), 1)
        else:
            x = torch.cat((self.branch1(x), self.branch2(x)), 1)
        return self.shuffle(x)


class ShuffleNetV2(nn.Module):
    """A convolution, three stages of units, a convolution, global pooling and a linear classifier.

    Args:
        num_classes: size of the output.
        width_mult: multiplies the channels of every stage, rounded to even numbers.
        depth_mult: multiplies the units of every stage, rounded up.
    """

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        channels = round_even(24 * width_mult)
        self.conv1 = tnn.ConvNormAct(3, channels, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for base_channels, repeats in STAGES:
            out_channels = round_even(base_channels * width_mult)
            units = [ShuffleUnit(channels, out_channels, stride=2)]
            for _ in range(scale_depth(repeats, depth_mult) - 1):
                units.append(ShuffleUnit(out_channels, out_channels, stride=1))
            stages.append(nn.Sequential(*units))
            channels = out_channels
        self.stage2, self.stage3, self.stage4 = stages
        last_channels = round_even(1024 * width_mult)
        self.conv5 = tnn.ConvNormAct(channels, last_channels, 1)
        self.fc = nn.Linear(last_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.stage4(self.stage3(self.stage2(x)))
        x = self.conv5(x).mean([2, 3])
        return self.fc(x)


def round_even(channels: float) -> int:
    """The nearest even number of channels, at least two: a unit works on halves."""
    return max(2, 2 * round(channels / 2))


def shufflenet_v2_x1_0(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ShuffleNetV2:
    return ShuffleNetV2(num_classes, width_mult, depth_mult)
