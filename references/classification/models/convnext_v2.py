"""ConvNeXt V2.

`ConvNeXt V2 <https://arxiv.org/abs/2301.00808>`_, section 4: the blocks of ConvNeXt with global response normalization
instead of a layer scale.
"""

from functools import partial

from torchvision_layers import nn as tnn

from .convnext import ConvNeXt


def convnextv2_atto(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ConvNeXt:
    block = partial(tnn.ConvNeXtBlock, layer_scale=None, hidden_norm_layer=tnn.GlobalResponseNorm)
    return ConvNeXt((2, 2, 6, 2), num_classes, width_mult, depth_mult, channels=40, block=block)
