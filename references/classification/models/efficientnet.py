"""EfficientNet.

`EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks <https://arxiv.org/abs/1905.11946>`_, table 1.
Child modules have torchvision's names, so its checkpoints load.
"""

from functools import partial

import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn

from .scaling import check_multipliers, rates_below, round_channels, scale_depth

# Expansion, kernel, channels, repeats and stride of each stage: rows 2 to 8 of table 1.
STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


class EfficientNet(nn.Module):
    """A convolution, seven stages of MBConv, a convolution, global pooling and a linear classifier.

    Args:
        num_classes: size of the output.
        width_mult: multiplies the channels of every stage.
        depth_mult: multiplies the blocks of every stage, rounded up.
        dropout: probability of dropping a feature before the classifier.
        stochastic_depth: multiplied by the share of earlier blocks, the probability of dropping the branch of a block.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        dropout: float = 0.2,
        stochastic_depth: float = 0.2,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        conv = partial(tnn.ConvNormAct, activation_layer=nn.SiLU)
        channels = round_channels(32 * width_mult)
        features: list[nn.Module] = [conv(3, channels, stride=2)]
        depths = [scale_depth(repeats, depth_mult) for _, _, _, repeats, _ in STAGES]
        rates = rates_below(stochastic_depth, depths)
        for drops, (expand_ratio, kernel_size, base_channels, _, stride) in zip(rates, STAGES, strict=True):
            out_channels, blocks = round_channels(base_channels * width_mult), []
            for i, drop in enumerate(drops):
                blocks.append(
                    tnn.MBConv(
                        channels,
                        out_channels,
                        kernel_size,
                        stride if i == 0 else 1,
                        expand_ratio,
                        stochastic_depth=drop,
                    )
                )
                channels = out_channels
            features.append(nn.Sequential(*blocks))
        features.append(conv(channels, 4 * channels, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * channels, num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                bound = num_classes**-0.5
                nn.init.uniform_(module.weight, -bound, bound)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def efficientnet_b0(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> EfficientNet:
    return EfficientNet(num_classes, width_mult, depth_mult)
