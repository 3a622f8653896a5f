"""Experimental layers: ``from torchvision_layers.experimental import nn as enn``."""

from torch.nn import Flatten, Mish
from torch.nn import SiLU as Swish

from .coord_conv import CoordConv2d
from .global_response_norm import GlobalResponseNorm
from .layer_norm import CLayerNorm, PFLayerNorm
from .rep_conv import RepConv
from .se_block import SEBlock
from .spatial_attention import MultiHeadedSpatialAttention
from .universal_inverted_bottleneck import UniversalInvertedBottleneck
from .weight_standardization import SWSConv2d, WSConv2d

__all__ = [
    "CLayerNorm",
    "CoordConv2d",
    "Flatten",
    "GlobalResponseNorm",
    "Mish",
    "MultiHeadedSpatialAttention",
    "PFLayerNorm",
    "RepConv",
    "SEBlock",
    "SWSConv2d",
    "Swish",
    "UniversalInvertedBottleneck",
    "WSConv2d",
]
