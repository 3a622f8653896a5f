"""Which modules can be folded, and what each contributes to the weights next to it."""

from typing import Any

import torch
import torchvision.ops
from torch import Tensor, nn

from ..._utils.scaling import CONV_AND_LINEAR, out_channels
from ...layers.conv import ConvNormAct
from ...layers.frozen_batch_norm import FrozenBatchNorm2d
from ...layers.layer_norm import LayerScale
from ...layers.linear import LinearDropoutAct
from ...layers.mlp import MLP
from ...layers.positional_conv import PositionalConv2d
from ...layers.same_conv import Conv2dSame
from ...layers.stochastic_depth import StochasticDepth
from ...quantized.eager.support import is_unit
from .replacement import float_class_of

__all__ = ["channels_dim", "is_identity", "is_opaque", "is_weighted", "runs_in_order", "scale_and_shift"]

# Norms with the number of image dimensions that they support; nn.BatchNorm1d supports features without any, too.
_NORMS: dict[type[nn.Module], tuple[int, ...]] = {
    FrozenBatchNorm2d: (2,),
    nn.BatchNorm1d: (0, 1),
    nn.BatchNorm2d: (2,),
    nn.BatchNorm3d: (3,),
    nn.SyncBatchNorm: (0, 1, 2, 3),
    torchvision.ops.FrozenBatchNorm2d: (2,),
}

# They return their input in eval mode.
_IDENTITIES = (
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.FeatureAlphaDropout,
    nn.Identity,
    StochasticDepth,
    torchvision.ops.DropBlock2d,
    torchvision.ops.DropBlock3d,
    torchvision.ops.StochasticDepth,
)

# Each runs all of its children, one after another.
_SEQUENTIAL_FORWARDS = tuple(layer.forward for layer in (nn.Sequential, ConvNormAct, LinearDropoutAct, MLP))


def is_identity(module: nn.Module) -> bool:
    """Whether the module returns its input in eval mode."""
    return float_class_of(module) in _IDENTITIES


def is_weighted(module: nn.Module) -> bool:
    """Whether the module is a convolution, a transposed convolution or a linear layer."""
    cls = float_class_of(module)
    # The twin of a Conv2dSame is a container of padding and a convolution.
    return cls in (*CONV_AND_LINEAR, PositionalConv2d) or cls is type(module) is Conv2dSame


def runs_in_order(module: nn.Module) -> bool:
    """Whether the module runs all of its children, one after another."""
    return float_class_of(module).forward in _SEQUENTIAL_FORWARDS


def is_opaque(module: nn.Module) -> bool:
    """Whether it is unknown how the module runs its children, or none of them can be folded."""
    is_container = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    is_leaf_of_torch = type(module).__module__.startswith("torch.nn.") and not is_container
    return is_unit(module) or "forward" in vars(module) or is_leaf_of_torch


def channels_dim(layer: nn.Module) -> int:
    """The dimension of the channels in the output of a weighted layer."""
    return -1 if isinstance(layer, nn.Linear) else 1


def scale_and_shift(module: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The scale and shift that a norm or a layer scale applies to each channel of the output of a weighted ``layer``.

    ``None`` for all other modules.
    """
    conv = layer.conv if isinstance(layer, PositionalConv2d) else layer
    if float_class_of(module) is LayerScale:
        assert isinstance(module.weight, Tensor)
        fits = module.dim == out_channels(conv) and module.channels_dim == channels_dim(conv)
        return (module.weight.detach(), None) if fits else None
    dims = len(conv.kernel_size) if isinstance(conv, nn.modules.conv._ConvNd) else 0
    if dims not in _NORMS.get(float_class_of(module), ()):
        return None
    norm: Any = module
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or len(mean) != out_channels(conv):  # on sequences, nn.BatchNorm1d normalizes another dimension
        return None
    scale = (variance.to(torch.promote_types(variance.dtype, torch.float32)) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()
