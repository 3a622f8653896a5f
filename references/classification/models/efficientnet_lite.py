"""EfficientNet-Lite.

EfficientNet without channel attention, with ReLU6 in place of SiLU, and with the first and last layers of its smallest
size in all sizes (`the authors' announcement <https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite>`_).
Convolutions pad as in TensorFlow, whose checkpoints exist.
"""

from functools import partial

import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn

from .efficientnet import STAGES
from .scaling import check_multipliers, rates_below, round_channels, scale_depth

# The constants of TensorFlow, in the terms of torch.
NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


class EfficientNetLite(nn.Module):
    """A convolution, seven stages of MBConv, a convolution, global pooling and a linear classifier.

    Args:
        width: the published multiplier of the channels of every stage.
        depth: the published multiplier of the blocks of the stages between the first and the last.
        dropout: probability of dropping a feature before the classifier.
        num_classes: size of the output.
        width_mult: multiplies all channels.
        depth_mult: multiplies the blocks of every stage, rounded up.
        stochastic_depth: multiplied by the share of earlier blocks, the probability of dropping the branch of a block.
    """

    def __init__(
        self,
        width: float,
        depth: float,
        dropout: float,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        *,
        stochastic_depth: float = 0.2,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        conv = partial(tnn.ConvNormAct, norm_layer=NORM, activation_layer=nn.ReLU6)
        block = partial(
            tnn.MBConv, norm_layer=NORM, activation_layer=nn.ReLU6, se_layer=None, conv_layer=tnn.Conv2dSame
        )
        channels = round_channels(32 * width_mult)
        features: list[nn.Module] = [conv(3, channels, stride=2, conv_layer=tnn.Conv2dSame)]
        depths = [scale_depth(repeats, depth * depth_mult) for _, _, _, repeats, _ in STAGES]
        depths[0], depths[-1] = (scale_depth(STAGES[stage][3], depth_mult) for stage in (0, -1))
        rates = rates_below(stochastic_depth, depths)
        for drops, (expand_ratio, kernel_size, base_channels, _, stride) in zip(rates, STAGES, strict=True):
            out_channels, stage = round_channels(base_channels * width * width_mult), []
            for i, drop in enumerate(drops):
                step = stride if i == 0 else 1
                stage.append(block(channels, out_channels, kernel_size, step, expand_ratio, stochastic_depth=drop))
                channels = out_channels
            features.append(nn.Sequential(*stage))
        last_channels = round_channels(1280 * width_mult)
        features.append(conv(channels, last_channels, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last_channels, num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                bound = num_classes**-0.5
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


# Trained on images of 224, 240, 260, 280 and 300 pixels.


def efficientnet_lite0(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> EfficientNetLite:
    return EfficientNetLite(1.0, 1.0, 0.2, num_classes, width_mult, depth_mult)


def efficientnet_lite1(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> EfficientNetLite:
    return EfficientNetLite(1.0, 1.1, 0.2, num_classes, width_mult, depth_mult)


def efficientnet_lite2(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> EfficientNetLite:
    return EfficientNetLite(1.1, 1.2, 0.3, num_classes, width_mult, depth_mult)


def efficientnet_lite3(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> EfficientNetLite:
    return EfficientNetLite(1.2, 1.4, 0.3, num_classes, width_mult, depth_mult)


def efficientnet_lite4(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> EfficientNetLite:
    return EfficientNetLite(1.4, 1.8, 0.3, num_classes, width_mult, depth_mult)
