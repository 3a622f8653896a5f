"""The public door to the stable layers: ``from torchvision_layers import nn as tnn``."""

from ..layers.conv import Conv1dNormAct, Conv3dNormAct, ConvNormAct
from ..layers.inverted_residual import InvertedResidual
from ..layers.linear import LinearDropoutAct
from ..layers.residual import BasicBlock, Bottleneck
from ..layers.squeeze_excitation import SqueezeExcitation
from ..layers.stochastic_depth import StochasticDepth

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "Conv1dNormAct",
    "Conv3dNormAct",
    "ConvNormAct",
    "InvertedResidual",
    "LinearDropoutAct",
    "SqueezeExcitation",
    "StochasticDepth",
]
