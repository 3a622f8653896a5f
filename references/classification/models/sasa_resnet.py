"""ResNet whose spatial convolutions are attention, written with the layers.

`Stand-Alone Self-Attention in Vision Models <https://arxiv.org/abs/1906.05909>`_, section 3 and the rows of table 1 in
which the stem is a convolution.
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
    """What stands for a 3×3 convolution: 8 heads that see 7×7 pixels, then the mean of 2×2 where it had a stride."""
    layer = enn.MultiHeadedSpatialAttention(in_channels, out_channels, kernel_size=7, padding=3, groups=8, bias=bias)
    # An odd size is rounded up, as by the strided convolution on the skip.
    return layer if stride == (1, 1) else nn.Sequential(layer, nn.AvgPool2d(2, ceil_mode=True))


def resnet26_sasa(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ResNet:
    """Blocks have a multiple of 16 planes, two channels for each head, so ``width_mult`` is one of a quarter."""
    model = ResNet(
        tnn.Bottleneck, (1, 2, 4, 1), num_classes, width_mult, depth_mult, conv_layer=attention, stem_layer=nn.Conv2d
    )
    for module in model.modules():
        # ResNet starts every convolution for a ReLU after it; logits, which are not scaled, would begin too large.
        if isinstance(module, enn.MultiHeadedSpatialAttention):
            module.reset_parameters()
    return model
