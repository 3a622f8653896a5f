"""Experimental layers: ``from torchvision_layers.experimental import nn as enn``."""

from torch.nn import Flatten, Mish
from torch.nn import SiLU as Swish

from .coord_conv import CoordConv2d
from .layer_norm import CLayerNorm, PFLayerNorm
from .patch_merging import PatchMerging
from .position_embedding import PositionEmbedding2d, SinePositionEmbedding2d
from .se_block import SEBlock
from .spatial_attention import MultiHeadedSpatialAttention
from .stochastic_depth_schedule import stochastic_depth_schedule
from .swin_block import SwinBlock
from .weight_standardization import SWSConv2d, WSConv2d
from .window_attention import WindowAttention

__all__ = [
    "CLayerNorm",
    "CoordConv2d",
    "Flatten",
    "Mish",
    "MultiHeadedSpatialAttention",
    "PFLayerNorm",
    "PatchMerging",
    "PositionEmbedding2d",
    "SEBlock",
    "SWSConv2d",
    "SinePositionEmbedding2d",
    "SwinBlock",
    "Swish",
    "WSConv2d",
    "WindowAttention",
    "stochastic_depth_schedule",
]
