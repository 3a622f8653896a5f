"""Cases of the layer benchmark: each layer in typical sizes, with its baseline and other implementations."""

import copy
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import convnext

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

__all__ = ["CASES", "Case"]


class Candidate(NamedTuple):
    """A module to measure."""

    module: nn.Module
    #: Whether it has the weights and the outputs of our layer.
    is_equal: bool = True
    #: Whether it is also measured in training.
    trains: bool = True


#: The baseline comes first; our layer is called "ours".
Candidates = dict[str, Candidate]


class Target(NamedTuple):
    """Upper limits of the figures."""

    inference: float | None = None
    training: float | None = None
    saved: float | None = None


class Case(NamedTuple):
    """A layer and an input size."""

    layer: type[nn.Module]
    shape: tuple[int, ...]
    #: Called with ``layer``, ``shape`` and ``options``.
    candidates: Callable[..., Candidates]
    target: Target = Target()
    options: Mapping[str, Any] = MappingProxyType({})

    def build(self) -> Candidates:
        return self.candidates(self.layer, self.shape, **self.options)

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return ", ".join([self.layer.__name__, *options, "×".join(map(str, self.shape))])


class Formula(nn.Module):
    """A function as a module, with the parameters of ``owner``."""

    def __init__(self, function: Callable[[Tensor], Any], owner: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.owner = owner

    def forward(self, input: Tensor) -> Any:
        return self.function(input)


class Scaling(nn.Module):
    """Multiplies each channel of each image by a factor."""

    def __init__(self, images: int, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(images, channels, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale


class EvalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that always stays in eval mode."""

    def train(self, mode: bool = True) -> "EvalBatchNorm2d":
        return super().train(False)


class ConcatenatedCoordConv2d(nn.Conv2d):
    """CoordConv as published, which appends coordinate channels to every image."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int) -> None:
        super().__init__(in_channels + 2, out_channels, kernel_size, padding=padding)

    def forward(self, input: Tensor) -> Tensor:
        images, _, rows, columns = input.shape
        line = partial(torch.linspace, -1, 1, device=input.device, dtype=input.dtype)
        i = line(rows).view(1, 1, rows, 1).expand(images, 1, rows, columns)
        j = line(columns).expand(images, 1, rows, columns)
        return super().forward(torch.cat([input, i, j], 1))


def timm_layers() -> ModuleType | None:
    """``timm.layers`` if timm is installed; imported on demand, since that takes seconds."""
    try:
        return importlib.import_module("timm.layers")
    except ImportError:
        return None


def timm_block(module: str, name: str) -> type[nn.Module] | None:
    """A block of timm that its layers lack, if timm is installed."""
    if timm_layers() is None:
        return None
    block: type[nn.Module] = getattr(importlib.import_module(f"timm.models.{module}"), name)
    return block


def with_weights_of(layer: nn.Module, module: nn.Module) -> nn.Module:
    module.load_state_dict(layer.state_dict())
    return module


def standardized(layer: type[tnn.WSConv2d], shape: Sequence[int]) -> Candidates:
    channels = shape[1]
    ours, plain, folded = (cls(channels, channels, 3, padding=1) for cls in (layer, nn.Conv2d, nn.Conv2d))
    folded.load_state_dict({"weight": ours.standardized_weight(), "bias": ours.bias})
    candidates = {"nn.Conv2d": Candidate(plain, is_equal=False), "ours": Candidate(ours)}
    candidates["folded"] = Candidate(folded, trains=False)
    if timm := timm_layers():
        if layer is tnn.SWSConv2d:
            peer = timm.ScaledStdConv2d(channels, channels, 3, padding=1, gamma=ours.gamma, eps=ours.eps)
        else:
            peer = timm.StdConv2d(channels, channels, 3, padding=1, bias=True, eps=ours.eps)
        peer.load_state_dict(ours.state_dict(), strict=False)  # our layer has no gain, which is 1 at first
        candidates["timm"] = Candidate(peer)
    return candidates


def attention(layer: type[enn.MultiHeadedSpatialAttention], shape: Sequence[int], *, heads: int) -> Candidates:
    channels = shape[1]
    ours = layer(channels, channels, 7, padding=3, groups=heads)
    convs = nn.ModuleList([ours.query, ours.key, ours.value])
    baseline = Formula(lambda x: tuple(conv(x) for conv in convs), convs)
    candidates = {"three 1×1 convs": Candidate(baseline, is_equal=False), "ours": Candidate(ours)}
    block = 8
    if (timm := timm_layers()) and all(side % block == 0 for side in shape[2:]):
        # All queries of a block share one window of more than 7 pixels, padded with zeros.
        peer = timm.halo_attn.HaloAttn(channels, num_heads=heads, block_size=block, halo_size=3, qkv_bias=True)
        candidates["timm, other windows"] = Candidate(peer, is_equal=False)
    return candidates


def normalization(
    layer: type[enn.CLayerNorm] | type[enn.PFLayerNorm], shape: Sequence[int], *, dims: tuple[int, ...]
) -> Candidates:
    channels, affine = shape[1], layer is enn.CLayerNorm
    ours = layer(channels, dims) if affine else layer(dims)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    groups = 1 if 1 in dims else channels

    def equations(input: Tensor) -> Tensor:
        mean, variance = input.mean(dims, keepdim=True), input.var(dims, correction=0, keepdim=True)
        output = (input - mean) / (variance + ours.eps).sqrt()
        return output * ours.weight.view(-1, 1, 1) + ours.bias.view(-1, 1, 1) if affine else output

    def group_norm(input: Tensor) -> Tensor:
        weight, bias = (ours.weight, ours.bias) if affine else (None, None)
        return F.group_norm(input, groups, weight, bias, ours.eps)

    candidates = {"F.group_norm": Candidate(Formula(group_norm, ours)), "ours": Candidate(ours)}
    if 1 not in dims:
        candidates["nn.InstanceNorm2d"] = Candidate(with_weights_of(ours, nn.InstanceNorm2d(channels, affine=affine)))
    elif timm := timm_layers():
        candidates["timm"] = Candidate(with_weights_of(ours, timm.GroupNorm1(channels, affine=affine)))
    return {**candidates, "equations": Candidate(Formula(equations, ours))}


def coordinates(layer: type[enn.CoordConv2d], shape: Sequence[int]) -> Candidates:
    channels = shape[1]
    ours, plain, published = (
        cls(channels, channels, 3, padding=1) for cls in (layer, nn.Conv2d, ConcatenatedCoordConv2d)
    )
    return {
        "nn.Conv2d": Candidate(plain, is_equal=False),
        "ours": Candidate(ours),
        "concatenation": Candidate(with_weights_of(ours, published)),
    }


def squeeze_excitation(layer: type[tnn.SqueezeExcitation], shape: Sequence[int]) -> Candidates:
    channels, squeeze = shape[1], shape[1] // 16
    ours = layer(channels) if layer is enn.SEBlock else layer(channels, squeeze)
    activation = type(ours.activation)
    candidates = {"x · scale": Candidate(Scaling(shape[0], channels), is_equal=False), "ours": Candidate(ours)}
    peer = torchvision.ops.SqueezeExcitation(channels, squeeze, activation)
    candidates["torchvision"] = Candidate(with_weights_of(ours, peer))
    if timm := timm_layers():
        peer = timm.SqueezeExcite(channels, rd_channels=squeeze, act_layer=activation)
        candidates["timm"] = Candidate(with_weights_of(ours, peer))
    return candidates


def mish(layer: type[nn.Mish], shape: Sequence[int]) -> Candidates:
    return {"F.mish": Candidate(Formula(F.mish)), "ours": Candidate(layer())}


def conv_norm_act(layer: type[tnn.ConvNormAct], shape: Sequence[int]) -> Candidates:
    channels = shape[1]
    ours = layer(channels, channels)
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    plain = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    peer = torchvision.ops.Conv2dNormActivation(channels, channels)
    return {
        "nn.Sequential": Candidate(with_weights_of(ours, plain)),
        "ours": Candidate(ours),
        "torchvision": Candidate(with_weights_of(ours, peer)),
    }


def frozen_batch_norm(layer: type[tnn.FrozenBatchNorm2d], shape: Sequence[int]) -> Candidates:
    ours = layer(shape[1])
    for buffer in ours.buffers():
        buffer.uniform_(0.5, 2)
    return {
        "nn.BatchNorm2d": Candidate(with_weights_of(ours, EvalBatchNorm2d(shape[1]))),
        "ours": Candidate(ours),
        "torchvision": Candidate(with_weights_of(ours, torchvision.ops.FrozenBatchNorm2d(shape[1]))),
    }


def mlp(layer: type[tnn.MLP], shape: Sequence[int]) -> Candidates:
    features = shape[-1]
    ours = layer(features, [4 * features, features])
    first, last = (child for child in ours if isinstance(child, nn.Linear))

    def two_linear(input: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(input, first.weight, first.bias)), last.weight, last.bias)

    return {
        "two F.linear": Candidate(Formula(two_linear, ours)),
        "ours": Candidate(ours),
        "torchvision": Candidate(with_weights_of(ours, torchvision.ops.MLP(features, [4 * features, features]))),
    }


def layer_norm(layer: type[tnn.LayerNorm2d], shape: Sequence[int]) -> Candidates:
    ours = layer(shape[1])
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    peer = convnext.LayerNorm2d(shape[1], eps=ours.eps)
    return {"torchvision": Candidate(with_weights_of(ours, peer)), "ours": Candidate(ours)}


def with_values_of(layer: nn.Module, module: nn.Module, keys: Sequence[str] | None = None) -> nn.Module:
    """``module`` with the weights of ``layer`` under other names, in the order of its own keys or of ``keys``."""
    state = layer.state_dict()
    values = state.values() if keys is None else [state[key] for key in keys]
    module.load_state_dict(dict(zip(module.state_dict(), values, strict=True)))
    return module


def rep_conv(layer: type[enn.RepConv], shape: Sequence[int], *, branches: int, groups: int) -> Candidates:
    channels = shape[1]
    ours = layer(channels, channels, groups=groups, branches=branches)
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
    candidates = {
        "conv, ReLU": Candidate(nn.Sequential(conv, nn.ReLU(inplace=True)), is_equal=False),
        "ours": Candidate(ours),
        "folded": Candidate(copy.deepcopy(ours).eval().folded(), trains=False),
    }
    options = {"group_size": None if groups == 1 else channels // groups, "num_conv_branches": branches}
    if block := timm_block("byobnet", "MobileOneBlock"):
        peer = block(channels, channels, **options)
        kinds = ("identity", "convs", "pointwise")  # the order of timm's children
        keys = [key for kind in kinds for key in ours.state_dict() if key.startswith(kind)]
        candidates["timm"] = Candidate(with_values_of(ours, peer, keys))
    return candidates


def global_response_norm(layer: type[tnn.GlobalResponseNorm], shape: Sequence[int], *, channels_dim: int) -> Candidates:
    ours = layer(shape[channels_dim], channels_dim=channels_dim)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    pixels = (2, 3) if channels_dim == 1 else (1,)
    view = (-1, 1, 1) if channels_dim == 1 else (-1,)

    def published(input: Tensor) -> Tensor:
        response = torch.norm(input, p=2, dim=pixels, keepdim=True)
        relative = response / (response.mean(channels_dim, keepdim=True) + ours.eps)
        return ours.weight.view(view) * (input * relative) + ours.bias.view(view) + input

    candidates = {"as published": Candidate(Formula(published, ours)), "ours": Candidate(ours)}
    if timm_layers():
        peer = importlib.import_module("timm.layers.grn").GlobalResponseNorm(
            shape[channels_dim], channels_last=channels_dim == -1
        )
        with_weights_of(ours, peer)
        is_image = channels_dim == 1
        module = peer if is_image else Formula(lambda x: peer(x.unsqueeze(1)).squeeze(1), peer)
        candidates["timm"] = Candidate(module)
    return candidates


def universal_inverted_bottleneck(
    layer: type[tnn.UniversalInvertedBottleneck], shape: Sequence[int], *, start: int, middle: int
) -> Candidates:
    channels = shape[1]
    ours = layer(channels, channels, start, middle)
    hidden = 4 * channels

    def conv(width: int, out_width: int, kernel_size: int, groups: int) -> list[nn.Module]:
        padding = kernel_size // 2
        conv = nn.Conv2d(width, out_width, kernel_size, padding=padding, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(out_width)]

    plain = nn.Sequential(
        *conv(channels, channels, start, channels),
        *conv(channels, hidden, 1, 1),
        nn.ReLU(inplace=True),
        *conv(hidden, hidden, middle, hidden),
        nn.ReLU(inplace=True),
        *conv(hidden, channels, 1, 1),
    )
    with_values_of(ours, plain)
    candidates = {"modules of torch": Candidate(Formula(lambda x: x + plain(x), plain)), "ours": Candidate(ours)}
    if block := timm_block("_efficientnet_blocks", "UniversalInvertedResidual"):
        peer = block(channels, channels, start, middle, exp_ratio=4, layer_scale_init_value=None)
        candidates["timm"] = Candidate(with_values_of(ours, peer))
    return candidates


def kept_rows(layer: type[tnn.ConvNeXtBlock], shape: Sequence[int], *, rate: float) -> Candidates:
    """Training with stochastic depth whose dropped rows are not computed."""
    ours = layer(shape[1], layer_scale=1.0, stochastic_depth=rate, kept_rows_only=True)
    peer = convnext.CNBlock(shape[1], 1.0, rate)
    candidates = {
        "torchvision": Candidate(with_weights_of(ours, peer)),
        "ours": Candidate(ours),
        "all rows": Candidate(with_weights_of(ours, layer(shape[1], layer_scale=1.0, stochastic_depth=rate))),
    }
    if importlib.util.find_spec("timm"):
        from timm.models.convnext import ConvNeXtBlock

        timm = ConvNeXtBlock(shape[1], drop_path=rate, ls_init_value=1.0)
        values = zip(timm.state_dict().items(), ours.state_dict().values(), strict=True)
        timm.load_state_dict({key: value.reshape(shaped.shape) for (key, shaped), value in values})
        candidates["timm"] = Candidate(timm)
    return candidates


EARLY, LATE = (8, 64, 56, 56), (8, 256, 14, 14)

CASES = [
    Case(tnn.WSConv2d, EARLY, standardized, Target(1.00, 1.02)),
    Case(tnn.WSConv2d, (1, 512, 14, 14), standardized, Target(1.00, 1.15)),
    Case(tnn.SWSConv2d, EARLY, standardized, Target(1.00, 1.02)),
    Case(tnn.SWSConv2d, (1, 512, 14, 14), standardized, Target(1.00, 1.15)),
    Case(enn.MultiHeadedSpatialAttention, EARLY, attention, Target(8, 14, 25), {"heads": 4}),
    Case(enn.MultiHeadedSpatialAttention, LATE, attention, Target(8, 14, 25), {"heads": 8}),
    Case(enn.PFLayerNorm, EARLY, normalization, Target(1.05, 1.05), {"dims": (1, 2, 3)}),
    Case(enn.PFLayerNorm, EARLY, normalization, Target(1.05, 1.05), {"dims": (2, 3)}),
    Case(enn.CLayerNorm, EARLY, normalization, Target(1.05, 1.05), {"dims": (1, 2, 3)}),
    Case(enn.CLayerNorm, EARLY, normalization, Target(1.05, 1.05), {"dims": (2, 3)}),
    Case(enn.CoordConv2d, EARLY, coordinates, Target(1.02, 1.10)),
    Case(tnn.SqueezeExcitation, EARLY, squeeze_excitation, Target(2.1, 1.9)),
    Case(tnn.SqueezeExcitation, LATE, squeeze_excitation, Target(2.1, 1.9)),
    Case(enn.SEBlock, EARLY, squeeze_excitation, Target(2.1, 1.9)),
    Case(enn.SEBlock, LATE, squeeze_excitation, Target(2.1, 1.9)),
    Case(enn.Mish, EARLY, mish, Target(1.00, 1.00)),
    Case(tnn.ConvNormAct, EARLY, conv_norm_act),
    Case(tnn.FrozenBatchNorm2d, EARLY, frozen_batch_norm, Target(1.0, 0.7)),
    Case(tnn.MLP, (8, 196, 256), mlp, Target(1.0, 0.98)),
    Case(enn.RepConv, EARLY, rep_conv, options={"branches": 1, "groups": 1}),
    Case(enn.RepConv, (8, 128, 28, 28), rep_conv, options={"branches": 4, "groups": 128}),
    Case(tnn.GlobalResponseNorm, EARLY, global_response_norm, Target(1.0, 1.0), {"channels_dim": 1}),
    Case(tnn.GlobalResponseNorm, (8, 196, 640), global_response_norm, Target(1.0, 1.0), {"channels_dim": -1}),
    Case(
        tnn.UniversalInvertedBottleneck,
        (8, 96, 14, 14),
        universal_inverted_bottleneck,
        Target(1.02, 1.02),
        {"start": 3, "middle": 5},
    ),
    Case(tnn.LayerNorm2d, EARLY, layer_norm),
    Case(tnn.ConvNeXtBlock, (32, 96, 14, 14), kept_rows, Target(1.02, 0.7), {"rate": 0.5}),
    Case(tnn.ConvNeXtBlock, (32, 96, 14, 14), kept_rows, Target(1.02, 1.02), {"rate": 0.1}),
]
