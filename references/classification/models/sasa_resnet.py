"""ResNet with attention in place of spatial convolutions.

`Stand-Alone Self-Attention in Vision Models <https://arxiv.org/abs/1906.05909>`_, section 3 and the rows of table 1
with a convolutional stem.
"""

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from .resnet import ResNet


def attention(
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    bias: bool,
) -> nn.Module:
    """Replaces a 3×3 convolution: 8 heads over 7×7 pixels and, in place of a stride, the mean of 2×2 pixels."""
    layer = enn.MultiHeadedSpatialAttention(in_channels, out_channels, kernel_size=7, padding=3, groups=8, bias=bias)
    # Rounds an odd size up, like the strided convolution on the skip.
    return layer if stride == (1, 1) else nn.Sequential(layer, nn.AvgPool2d(2, ceil_mode=True))


def resnet26_sasa(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    """``width_mult`` must be a multiple of 0.25: planes are a multiple of 16, two channels per head."""
    model = ResNet(
        tnn.Bottleneck, (1, 2, 4, 1), num_classes, width_mult, depth_mult, conv_layer=attention, stem_layer=nn.Conv2d
    )
    for module in model.modules():
        # ResNet initializes convolutions for a following ReLU; attention logits are not scaled and would be too large.
        if isinstance(module, enn.MultiHeadedSpatialAttention):
            module.reset_parameters()
    return model
