"""Which torch modules the eager engine runs in int8, and which need a float fallback."""

import torchvision.ops
from torch import nn

from ..._utils.modules import numeric_padding
from ..._utils.plain.padding import SamePadding
from ...layers.channel_cap import ChannelCap
from ...layers.frozen_batch_norm import FrozenBatchNorm2d
from ...layers.layer_norm import LayerNorm2d, LayerScale
from ...layers.permute import Permute
from ...layers.positional_conv import PositionMap
from ...layers.squeeze_excitation import GlobalAvgPool2d
from ...layers.stochastic_depth import StochasticDepth
from ..layers.observed import DeQuantStub, Observed
from ..report_row import Int8Support
from .fusing import Fused
from .int8_modules import Int8Module
from .patterns import BATCH_NORMS

__all__ = ["becomes_int8", "int8_support", "is_int8", "is_unit"]

# Replaced by a module of torch.ao.nn.quantized.
_CONVERTED = {
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ELU,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.Linear,
    nn.ReLU6,
}

# Their operators have kernels for quantized tensors: exact, or with a fixed range (sigmoids, tanh).
_PASS_THROUGH = {
    ChannelCap,
    GlobalAvgPool2d,
    Permute,
    SamePadding,
    StochasticDepth,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.ChannelShuffle,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.Flatten,
    nn.Hardsigmoid,
    nn.Identity,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ReLU,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.Sigmoid,
    nn.Tanh,
    nn.Unflatten,
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    torchvision.ops.Permute,
    torchvision.ops.StochasticDepth,
}

# They raise on quantized tensors, or keep a range that does not fit their output (GELU), or are wrong: torch's int8
# group_norm, which also computes instance and layer norm, gave wrong values for some of 128 samples on torch 2.15.
_FLOAT_FALLBACKS = {
    FrozenBatchNorm2d,
    LayerNorm2d,
    LayerScale,
    PositionMap,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.BatchNorm1d,
    nn.CELU,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.CircularPad3d,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
    nn.GELU,
    nn.GLU,
    nn.GroupNorm,
    nn.Hardshrink,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LogSigmoid,
    nn.LogSoftmax,
    nn.MaxPool3d,
    nn.Mish,
    nn.PReLU,
    nn.RReLU,
    nn.ReflectionPad3d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.SELU,
    nn.SiLU,
    nn.Softmax,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanhshrink,
    torchvision.ops.FrozenBatchNorm2d,
}


def int8_support(module: nn.Module) -> Int8Support:
    """How a float module will run. A subclass of a known class is unknown, unless it is a twin."""
    if getattr(module, "runs_in_float", False):
        return Int8Support.FLOAT_FORWARD
    if getattr(module, "stays_in_float", False) or "forward" in module.__dict__:
        return Int8Support.UNKNOWN
    if getattr(module, "is_rewritten", False) or getattr(module, "takes_int8", False):
        return Int8Support.CONTAINER
    float_class = getattr(module, "float_class", type(module))
    if _has_unsupported_arguments(module):
        return Int8Support.FLOAT_FALLBACK
    for classes, support in (
        (_CONVERTED, Int8Support.CONVERTED),
        (_PASS_THROUGH, Int8Support.PASS_THROUGH),
        (_FLOAT_FALLBACKS, Int8Support.FLOAT_FALLBACK),
    ):
        if float_class in classes:
            return support
    only_calls_children = type(module).forward in (nn.Module.forward, nn.Sequential.forward)
    return Int8Support.CONTAINER if float_class is not type(module) or only_calls_children else Int8Support.UNKNOWN


def becomes_int8(module: nn.Module) -> bool:
    """Whether the module is, or has below it, a convolution or linear layer that becomes int8."""
    if getattr(module, "stays_in_float", False):
        return False
    if type(module) in BATCH_NORMS:
        return int8_support(module) is Int8Support.CONVERTED
    return type(module) is nn.MultiheadAttention or any(map(becomes_int8, module.children()))


def is_unit(module: nn.Module) -> bool:
    """Whether the engine treats the module and its children as one."""
    return isinstance(module, (DeQuantStub, Fused, Observed)) or _is_of_torch_ao(module)


def is_int8(module: nn.Module) -> bool:
    """Whether the engine created the module and it computes on int8 tensors."""
    is_converted = _is_of_torch_ao(module, "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
    return isinstance(module, Int8Module) or (is_converted and type(module).__name__ != "FloatFunctional")


def _is_of_torch_ao(module: nn.Module, *packages: str) -> bool:
    """Compares names, because ``torch.ao`` is deprecated and may be missing."""
    return any(cls.__module__.startswith(packages or ("torch.ao.",)) for cls in type(module).__mro__)


def _has_unsupported_arguments(module: nn.Module) -> bool:
    """Whether the int8 kernel of the module's class does not support the arguments of this instance."""
    if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
        return not module.affine or module.running_mean is None
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module.padding_mode != "zeros" or numeric_padding(module) is None
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d)):  # qnnpack's kernel ignores both arguments
        return getattr(module, "divisor_override", None) is not None or (
            not module.count_include_pad and module.padding not in (0, (0,), (0, 0))
        )
    if isinstance(module, (nn.MaxPool1d, nn.MaxPool2d)):  # qnnpack's kernel ignores the dilation
        return module.return_indices or module.dilation not in (1, (1,), [1], (1, 1), [1, 1])
    return isinstance(module, nn.Upsample) and module.mode not in ("nearest", "bilinear")
