"""Experimental layers: ``from torchvision_layers.experimental import nn as enn``."""

from typing import TYPE_CHECKING, Any

from torch.nn import Flatten, Mish
from torch.nn import SiLU as Swish

from ._promoted import promoted
from .aspp import ASPP
from .attention import MultiHeadSelfAttention
from .classifier_head import ClassifierHead
from .concatenation import Concatenation
from .coord_conv import CoordConv2d
from .csp_block import CSPBlock
from .feature_pyramid import FeaturePyramid
from .gated_mlp import GatedMLP
from .layer_norm import CLayerNorm, PFLayerNorm
from .patch_embedding import PatchEmbedding
from .patch_merging import PatchMerging
from .path_aggregation import PathAggregation
from .position_embedding import PositionEmbedding2d, SinePositionEmbedding2d
from .rep_conv import RepConv
from .se_block import SEBlock
from .spatial_attention import MultiHeadedSpatialAttention
from .sppf import SPPF
from .swin_block import SwinBlock
from .transformer_block import TransformerEncoderBlock
from .up_block import UpBlock
from .window_attention import WindowAttention

__all__ = [
    "ASPP",
    "SPPF",
    "CLayerNorm",
    "CSPBlock",
    "ClassifierHead",
    "Concatenation",
    "CoordConv2d",
    "FeaturePyramid",
    "Flatten",
    "GatedMLP",
    "Mish",
    "MultiHeadSelfAttention",
    "MultiHeadedSpatialAttention",
    "PFLayerNorm",
    "PatchEmbedding",
    "PatchMerging",
    "PathAggregation",
    "PositionEmbedding2d",
    "RepConv",
    "SEBlock",
    "SinePositionEmbedding2d",
    "SwinBlock",
    "Swish",
    "TransformerEncoderBlock",
    "UpBlock",
    "WindowAttention",
]

if not TYPE_CHECKING:  # type checkers know the new paths only

    def __getattr__(name: str) -> Any:
        return promoted(name, __name__)
