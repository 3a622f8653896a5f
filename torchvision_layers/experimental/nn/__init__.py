"""Experimental layers: ``from torchvision_layers.experimental import nn as enn``."""

from torch.nn import Flatten, Mish
from torch.nn import SiLU as Swish

from .aspp import ASPP
from .concatenation import Concatenation
from .coord_conv import CoordConv2d
from .csp_block import CSPBlock
from .feature_pyramid import FeaturePyramid
from .layer_norm import CLayerNorm, PFLayerNorm
from .path_aggregation import PathAggregation
from .se_block import SEBlock
from .spatial_attention import MultiHeadedSpatialAttention
from .sppf import SPPF
from .up_block import UpBlock
from .weight_standardization import SWSConv2d, WSConv2d

__all__ = [
    "ASPP",
    "SPPF",
    "CLayerNorm",
    "CSPBlock",
    "Concatenation",
    "CoordConv2d",
    "FeaturePyramid",
    "Flatten",
    "Mish",
    "MultiHeadedSpatialAttention",
    "PFLayerNorm",
    "PathAggregation",
    "SEBlock",
    "SWSConv2d",
    "Swish",
    "UpBlock",
    "WSConv2d",
]
