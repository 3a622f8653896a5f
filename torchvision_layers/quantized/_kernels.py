"""What the eager engine can do with a torch module: run it in int8, wrap it in a float island, or neither."""

from enum import Enum

import torchvision.ops
from torch import nn

from ..layers.frozen_batch_norm import FrozenBatchNorm2d
from ..layers.layer_norm import LayerNorm2d, LayerScale
from ..layers.permute import Permute
from ..layers.positional_conv import PositionMap
from ..layers.stochastic_depth import StochasticDepth
from ._int8 import Int8Module
from ._observed import DeQuantStub, Observed

__all__ = ["Kernel", "has_hooks", "is_int8", "is_unit", "kernel", "make_padding_numeric", "numeric_padding"]


class Kernel(Enum):
    """How a module runs in an int8 model."""

    CONVERTED = "has an int8 form"
    PASSED = "takes int8 tensors as it is"
    ISLAND = "has no int8 kernel"
    CONTAINER = "only calls its children"
    UNKNOWN = "is not known to the int8 engine"


# Swapped for a module of torch.ao.nn.quantized.
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

# Their operators have kernels for quantized tensors: exact, or with a range of their own (sigmoids, tanh).
_PASSED = {
    Permute,
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
    nn.Hardtanh,
    nn.Identity,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Unflatten,
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.ZeroPad2d,
    torchvision.ops.Permute,
    torchvision.ops.StochasticDepth,
}

# Raise on a quantized tensor; or keep a range that does not fit their output (GELU); or come out wrong: torch's int8
# group_norm, which also computes the other two, gave some of 128 samples other values on torch 2.15.
_ISLANDS = {
    FrozenBatchNorm2d,
    LayerNorm2d,
    LayerScale,
    PositionMap,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.BatchNorm1d,
    nn.CELU,
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
    nn.SELU,
    nn.SiLU,
    nn.Softmax,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanhshrink,
    torchvision.ops.FrozenBatchNorm2d,
}


def kernel(module: nn.Module) -> Kernel:
    """How a float module will run; of a subclass nothing is known, unless it is a twin."""
    if getattr(module, "stays_in_float", False) or "forward" in module.__dict__:
        return Kernel.UNKNOWN
    kind = getattr(module, "float_class", type(module))
    if _is_exception(module):
        return Kernel.ISLAND
    for known, how in ((_CONVERTED, Kernel.CONVERTED), (_PASSED, Kernel.PASSED), (_ISLANDS, Kernel.ISLAND)):
        if kind in known:
            return how
    if kind is not type(module):
        return Kernel.CONTAINER
    has_own_tensors = bool(module._parameters or module._buffers)
    is_leaf = not module._modules
    is_of_torch = type(module).__module__.startswith("torch.nn.modules")
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and not has_own_tensors:
        return Kernel.CONTAINER
    return Kernel.UNKNOWN if has_own_tensors or is_of_torch or is_leaf else Kernel.CONTAINER


def is_unit(module: nn.Module) -> bool:
    """Whether the eager engine treats the module and its children as one."""
    return isinstance(module, (Observed, DeQuantStub)) or _is_of_torch_ao(module)


def is_int8(module: nn.Module) -> bool:
    """Whether the eager engine made the module and it computes on int8 tensors."""
    is_converted = _is_of_torch_ao(module, "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
    return isinstance(module, Int8Module) or (is_converted and type(module).__name__ != "FloatFunctional")


def _is_of_torch_ao(module: nn.Module, *packages: str) -> bool:
    """Asked by name, for ``torch.ao`` is deprecated and may be gone."""
    return any(kind.__module__.startswith(packages or ("torch.ao.",)) for kind in type(module).__mro__)


def has_hooks(module: nn.Module) -> bool:
    """Whether ``module`` carries hooks, which fusing would lose or call with something else."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def make_padding_numeric(model: nn.Module) -> None:
    """Gives convolutions their padding in numbers, in place, where numbers can say it."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            module.padding = numeric_padding(module) or module.padding


def numeric_padding(conv: nn.modules.conv._ConvNd) -> tuple[int, ...] | None:
    """The padding of each side in numbers; ``None`` where the two sides of a dimension differ."""
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)


def _is_exception(module: nn.Module) -> bool:
    """Whether the kernel that the tables promise does not take this module's arguments."""
    if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
        return not module.affine or module.running_mean is None
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module.padding_mode != "zeros" or numeric_padding(module) is None
    if isinstance(module, nn.AvgPool2d):  # qnnpack's kernel ignores the two
        return module.divisor_override is not None or (
            not module.count_include_pad and module.padding not in (0, (0, 0))
        )
    return isinstance(module, nn.Upsample) and module.mode not in ("nearest", "bilinear")
