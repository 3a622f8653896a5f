"""MobileOne.

`MobileOne: An Improved One millisecond Mobile Backbone <https://arxiv.org/abs/2206.04040>`_, tables 2 and 3.
"""

from functools import partial

from torch import Tensor, nn

from torchvision_layers.experimental import nn as enn

from .scaling import check_multipliers, scale_channels, scale_depth

#: Channels before the multipliers, and blocks, of the four stages after the first layer.
STAGES = ((64, 2), (128, 8), (256, 10), (512, 1))


class MobileOne(nn.Module):
    """Depthwise separable convolutions, each folded from several branches, global pooling and a linear layer.

    Args:
        widths: multiplies the channels of each stage.
        branches: convolutions of full kernel size in each layer except the first.
        num_classes: size of the output.
        width_mult: multiplies the channels of every stage.
        depth_mult: multiplies the blocks of every stage, rounded up.
    """

    def __init__(
        self,
        widths: tuple[float, float, float, float],
        branches: int,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        conv = partial(enn.RepConv, branches=branches)
        channels = scale_channels(min(64, 64 * widths[0]), width_mult)
        self.stem = enn.RepConv(3, channels, stride=2)
        stages: list[nn.Module] = []
        for (stage_channels, depth), width in zip(STAGES, widths, strict=True):
            out_channels, layers = scale_channels(stage_channels * width, width_mult), []
            for i in range(scale_depth(depth, depth_mult)):
                layers.append(conv(channels, channels, stride=2 if i == 0 else 1, groups=channels))
                layers.append(conv(channels, out_channels, 1))
                channels = out_channels
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Flatten(1), nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.stages(self.stem(x))))


def mobileone_s0(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> MobileOne:
    return MobileOne((0.75, 1.0, 1.0, 2.0), 4, num_classes, width_mult, depth_mult)
