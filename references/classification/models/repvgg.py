"""RepVGG.

`RepVGG: Making VGG-style ConvNets Great Again <https://arxiv.org/abs/2101.03697>`_, tables 2 and 3.
"""

from torch import Tensor, nn

from torchvision_layers.experimental import nn as enn

from .scaling import check_multipliers, scale_channels, scale_depth

#: Channels of stages 2 to 5 before the multipliers a and b; stage 1 is the first layer.
CHANNELS = (64, 128, 256, 512)


class RepVGG(nn.Module):
    """Five stages of 3×3 convolutions with ReLU, each folded from three branches, global pooling and a linear layer.

    Args:
        depths: layers of stages 2 to 5.
        a: multiplies the channels of all stages except the last.
        b: multiplies the channels of the last stage.
        num_classes: size of the output.
        width_mult: multiplies the channels of every stage.
        depth_mult: multiplies the layers of stages 2 to 5, rounded up.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        a: float,
        b: float,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        channels = scale_channels(min(64, 64 * a), width_mult)
        self.stem = enn.RepConv(3, channels, stride=2)
        stages: list[nn.Module] = []
        for stage_channels, depth, mult in zip(CHANNELS, depths, (a, a, a, b), strict=True):
            out_channels, layers = scale_channels(stage_channels * mult, width_mult), []
            for i in range(scale_depth(depth, depth_mult)):
                layers.append(enn.RepConv(channels, out_channels, stride=2 if i == 0 else 1))
                channels = out_channels
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Flatten(1), nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.stages(self.stem(x))))


def repvgg_a0(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> RepVGG:
    return RepVGG((2, 4, 14, 1), 0.75, 2.5, num_classes, width_mult, depth_mult)
