"""Quantizable twins of the layers, and int8 for any model made of them."""

from .api import convert, freeze, fuse_model, prepare_qat, quantize
from .eager.model import QuantizableModel, quantizable
from .layers.base import QuantizableLayer
from .layers.conv import QuantizableConv1dNormAct, QuantizableConv3dNormAct, QuantizableConvNormAct
from .layers.convnext import QuantizableConvNeXtBlock
from .layers.depthwise import QuantizableDepthwiseSeparableConv
from .layers.inverted_residual import QuantizableInvertedResidual
from .layers.layer_norm import QuantizableLayerNorm2d, QuantizableLayerScale
from .layers.linear import QuantizableLinearDropoutAct
from .layers.mbconv import QuantizableFusedMBConv, QuantizableMBConv
from .layers.mlp import QuantizableMLP
from .layers.observed import Addition, Concatenation, Multiplication
from .layers.positional_conv import QuantizablePositionalConv2d
from .layers.residual import QuantizableBasicBlock, QuantizableBottleneck
from .layers.same_conv import QuantizableConv2dSame
from .layers.squeeze_excitation import QuantizableSqueezeExcitation
from .pt2e.model import QuantizableGraph
from .ranges import Percentile
from .report import Report, ReportRow, report
from .trial import Trial

__all__ = [
    "Addition",
    "Concatenation",
    "Multiplication",
    "Percentile",
    "QuantizableBasicBlock",
    "QuantizableBottleneck",
    "QuantizableConv1dNormAct",
    "QuantizableConv2dSame",
    "QuantizableConv3dNormAct",
    "QuantizableConvNeXtBlock",
    "QuantizableConvNormAct",
    "QuantizableDepthwiseSeparableConv",
    "QuantizableFusedMBConv",
    "QuantizableGraph",
    "QuantizableInvertedResidual",
    "QuantizableLayer",
    "QuantizableLayerNorm2d",
    "QuantizableLayerScale",
    "QuantizableLinearDropoutAct",
    "QuantizableMBConv",
    "QuantizableMLP",
    "QuantizableModel",
    "QuantizablePositionalConv2d",
    "QuantizableSqueezeExcitation",
    "Report",
    "ReportRow",
    "Trial",
    "convert",
    "freeze",
    "fuse_model",
    "prepare_qat",
    "quantizable",
    "quantize",
    "report",
]
