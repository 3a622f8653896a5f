"""Quantizable twins of the layers, and the way of any model to int8."""

from ._observed import Addition, Multiplication
from ._twin import QuantizableLayer
from .conv import QuantizableConv1dNormAct, QuantizableConv3dNormAct, QuantizableConvNormAct
from .convnext import QuantizableConvNeXtBlock
from .depthwise import QuantizableDepthwiseSeparableConv
from .graph import QuantizableGraph
from .inverted_residual import QuantizableInvertedResidual
from .layer_norm import QuantizableLayerNorm2d, QuantizableLayerScale
from .linear import QuantizableLinearDropoutAct
from .mbconv import QuantizableFusedMBConv, QuantizableMBConv
from .mlp import QuantizableMLP
from .model import QuantizableModel, quantizable
from .positional_conv import QuantizablePositionalConv2d
from .report import Report, ReportRow, report
from .residual import QuantizableBasicBlock, QuantizableBottleneck
from .squeeze_excitation import QuantizableSqueezeExcitation
from .workflow import convert, freeze, fuse_model, prepare_qat, quantize

__all__ = [
    "Addition",
    "Multiplication",
    "QuantizableBasicBlock",
    "QuantizableBottleneck",
    "QuantizableConv1dNormAct",
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
    "convert",
    "freeze",
    "fuse_model",
    "prepare_qat",
    "quantizable",
    "quantize",
    "report",
]
