"""DenseNet.

`Densely Connected Convolutional Networks <https://arxiv.org/abs/1608.06993>`_, table 1 and section 3: DenseNet-BC, with
bottlenecks and compression. Child modules have torchvision's names, so its checkpoints load.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .scaling import check_multipliers, scale_channels, scale_depth

# A 1×1 convolution reduces its input to this multiple of the growth rate.
BOTTLENECK = 4


class DenseLayer(nn.Sequential):
    """A 1×1 and a 3×3 convolution, each after a norm and an activation: the features that one layer adds."""

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        hidden = BOTTLENECK * growth_rate
        super().__init__(
            OrderedDict(
                norm1=nn.BatchNorm2d(in_channels),
                relu1=nn.ReLU(inplace=True),
                conv1=nn.Conv2d(in_channels, hidden, 1, bias=False),
                norm2=nn.BatchNorm2d(hidden),
                relu2=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(hidden, growth_rate, 3, padding=1, bias=False),
            )
        )


class DenseBlock(nn.ModuleDict):
    """Layers that each see the features of all layers before."""

    def __init__(self, depth: int, in_channels: int, growth_rate: int) -> None:
        super().__init__(
            {f"denselayer{i + 1}": DenseLayer(in_channels + i * growth_rate, growth_rate) for i in range(depth)}
        )
        self.out_channels = in_channels + depth * growth_rate
        self.reduction = 1

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    """Halves the channels and the size."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(
            OrderedDict(
                norm=nn.BatchNorm2d(in_channels),
                relu=nn.ReLU(inplace=True),
                conv=nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
                pool=nn.AvgPool2d(2),
            )
        )
        self.out_channels = in_channels // 2
        self.reduction = 2


class DenseNet(nn.Module):
    """A convolution, four dense blocks with transitions between them, global pooling and a linear classifier.

    Args:
        depths: layers in each block.
        num_classes: size of the output.
        width_mult: multiplies the 64 channels of the first convolution and the 32 that each layer adds.
        depth_mult: multiplies the layers of every block, rounded up.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        growth_rate, channels = scale_channels(32, width_mult), scale_channels(64, width_mult)
        self.features = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv0=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
                norm0=nn.BatchNorm2d(channels),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        for i, depth in enumerate(depths, start=1):
            block = DenseBlock(scale_depth(depth, depth_mult), channels, growth_rate)
            self.features.add_module(f"denseblock{i}", block)
            channels = block.out_channels
            if i < len(depths):
                transition = Transition(channels)
                self.features.add_module(f"transition{i}", transition)
                channels = transition.out_channels
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.act = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.act(self.features(x)))
        return self.classifier(torch.flatten(x, 1))


def densenet121(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> DenseNet:
    return DenseNet((6, 12, 24, 16), num_classes, width_mult, depth_mult)
