"""Experimental layers: ``from torchvision_layers.experimental import nn as enn``."""

from torch.nn import Flatten, Mish
from torch.nn import SiLU as Swish

from .coord_conv import CoordConv2d
from .layer_norm import CLayerNorm, PFLayerNorm
from .se_block import SEBlock
from .spatial_attention import MultiHeadedSpatialAttention
from .weight_standardization import SWSConv2d, WSConv2d

__all__ = [
    "CLayerNorm",
    "CoordConv2d",
    "Flatten",
    "Mish",
    "MultiHeadedSpatialAttention",
    "PFLayerNorm",
    "SEBlock",
    "SWSConv2d",
    "Swish",
    "WSConv2d",
]
