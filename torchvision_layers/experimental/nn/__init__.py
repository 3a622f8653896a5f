"""Experimental layers: ``from torchvision_layers.experimental import nn as enn``."""

from torch.nn import Flatten, Mish
from torch.nn import SiLU as Swish

from .attention import MultiHeadSelfAttention
from .classifier_head import ClassifierHead
from .coord_conv import CoordConv2d
from .gated_mlp import GatedMLP
from .layer_norm import CLayerNorm, PFLayerNorm
from .patch_embedding import PatchEmbedding
from .se_block import SEBlock
from .spatial_attention import MultiHeadedSpatialAttention
from .transformer_block import TransformerEncoderBlock
from .weight_standardization import SWSConv2d, WSConv2d

__all__ = [
    "CLayerNorm",
    "ClassifierHead",
    "CoordConv2d",
    "Flatten",
    "GatedMLP",
    "Mish",
    "MultiHeadSelfAttention",
    "MultiHeadedSpatialAttention",
    "PFLayerNorm",
    "PatchEmbedding",
    "SEBlock",
    "SWSConv2d",
    "Swish",
    "TransformerEncoderBlock",
    "WSConv2d",
]
