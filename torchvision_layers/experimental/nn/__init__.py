"""Experimental layers: ``from torchvision_layers.experimental import nn as enn``."""

from torch.nn import Flatten, Mish
from torch.nn import SiLU as Swish

from .attention import MultiHeadSelfAttention
from .classifier_head import ClassifierHead
from .coord_conv import CoordConv2d
from .gated_mlp import GatedMLP
from .global_response_norm import GlobalResponseNorm
from .layer_norm import CLayerNorm, PFLayerNorm
from .patch_embedding import PatchEmbedding
from .patch_merging import PatchMerging
from .position_embedding import PositionEmbedding2d, SinePositionEmbedding2d
from .rep_conv import RepConv
from .se_block import SEBlock
from .spatial_attention import MultiHeadedSpatialAttention
from .stochastic_depth_schedule import stochastic_depth_schedule
from .swin_block import SwinBlock
from .transformer_block import TransformerEncoderBlock
from .universal_inverted_bottleneck import UniversalInvertedBottleneck
from .weight_standardization import SWSConv2d, WSConv2d
from .window_attention import WindowAttention

__all__ = [
    "CLayerNorm",
    "ClassifierHead",
    "CoordConv2d",
    "Flatten",
    "GatedMLP",
    "GlobalResponseNorm",
    "Mish",
    "MultiHeadSelfAttention",
    "MultiHeadedSpatialAttention",
    "PFLayerNorm",
    "PatchEmbedding",
    "PatchMerging",
    "PositionEmbedding2d",
    "RepConv",
    "SEBlock",
    "SWSConv2d",
    "SinePositionEmbedding2d",
    "SwinBlock",
    "Swish",
    "TransformerEncoderBlock",
    "UniversalInvertedBottleneck",
    "WSConv2d",
    "WindowAttention",
    "stochastic_depth_schedule",
]
