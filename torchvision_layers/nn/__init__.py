"""Stable layers: ``from torchvision_layers import nn as tnn``."""

from ..layers.conv import Conv1dNormAct, Conv3dNormAct, ConvNormAct
from ..layers.convnext import ConvNeXtBlock
from ..layers.depthwise import DepthwiseSeparableConv
from ..layers.frozen_batch_norm import FrozenBatchNorm2d
from ..layers.global_response_norm import GlobalResponseNorm
from ..layers.inverted_residual import InvertedResidual
from ..layers.layer_norm import LayerNorm2d, LayerScale
from ..layers.lazy import LazyConvNormAct, LazySqueezeExcitation
from ..layers.linear import LinearDropoutAct
from ..layers.mbconv import FusedMBConv, MBConv
from ..layers.mlp import MLP
from ..layers.permute import Permute
from ..layers.replacement import replace
from ..layers.residual import BasicBlock, Bottleneck
from ..layers.same_conv import Conv2dSame
from ..layers.squeeze_excitation import SqueezeExcitation
from ..layers.stochastic_depth import StochasticDepth
from ..layers.stochastic_depth_schedule import stochastic_depth_schedule
from ..layers.universal_inverted_bottleneck import UniversalInvertedBottleneck
from ..layers.weight_standardization import SWSConv2d, WSConv2d

__all__ = [
    "MLP",
    "BasicBlock",
    "Bottleneck",
    "Conv1dNormAct",
    "Conv2dSame",
    "Conv3dNormAct",
    "ConvNeXtBlock",
    "ConvNormAct",
    "DepthwiseSeparableConv",
    "FrozenBatchNorm2d",
    "FusedMBConv",
    "GlobalResponseNorm",
    "InvertedResidual",
    "LayerNorm2d",
    "LayerScale",
    "LazyConvNormAct",
    "LazySqueezeExcitation",
    "LinearDropoutAct",
    "MBConv",
    "Permute",
    "SWSConv2d",
    "SqueezeExcitation",
    "StochasticDepth",
    "UniversalInvertedBottleneck",
    "WSConv2d",
    "replace",
    "stochastic_depth_schedule",
]
