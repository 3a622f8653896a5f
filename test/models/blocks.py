"""Layers of this package, and sequences of layers, as constructors."""

from collections.abc import Callable
from functools import partial

from .choices import Choices
from .layers import Layer, activation, conv, norm, plain_conv, pool, small_layer
from .shapes import Sizes, pooled, smallest

__all__ = ["any_layer", "conv_norm_act", "our_layer", "sequence"]

_NORMS = ("", "", "", ", norm_layer=None", ", norm_layer=nn.Identity", ", norm_layer=tnn.LayerNorm2d")
_ACTIVATIONS = ("", "", "nn.Hardswish", "nn.SiLU", "nn.GELU", "None", "nn.LeakyReLU", "nn.ReLU6")


def our_layer(choices: Choices, channels: int, sizes: Sizes) -> Layer:
    """A layer of ``tnn`` or ``enn``."""
    stride = choices.pick(1, 1, 2) if smallest(sizes) >= 8 else 1
    after = pooled(sizes) if stride == 2 else sizes
    out_channels = choices.pick(channels, 8, 4, 12)
    norm_layer = choices.pick_from(_NORMS)
    gate = choices.pick("", ", scale_activation=nn.Hardsigmoid")
    act = choices.pick_from(_ACTIVATIONS)
    act = f", activation_layer={act}" if act else ""
    se = choices.pick("", "", ", se_layer=tnn.SqueezeExcitation")
    depth = choices.pick("", "", ", stochastic_depth=0.2")
    identity = norm_layer if "Identity" in norm_layer else ""
    kernel = choices.pick(3, 5, 1) if smallest(sizes) > 4 else choices.pick(3, 1)
    odd = max(kernel, 3)
    strided = f", stride={stride}" if stride > 1 else ""
    bias = choices.pick("", "", ", bias=True")
    tail = f"{norm_layer}{act}"
    changing = [
        f"tnn.ConvNormAct({channels}, {out_channels}, {kernel}{strided}{bias}{tail})",
        f"tnn.BasicBlock({channels}, {out_channels}{strided}{act}{se}{depth}{identity})",
        f"tnn.DepthwiseSeparableConv({channels}, {out_channels}, {odd}{strided}{tail})",
        f"tnn.InvertedResidual({channels}, {out_channels}, {stride}, 2{act}{se}{depth}{identity})",
        f"tnn.MBConv({channels}, {out_channels}, {odd}{strided}, expand_ratio=2{tail}{depth})",
        f"tnn.FusedMBConv({channels}, {out_channels}, {odd}{strided}, expand_ratio=2{tail}{depth})",
        f"tnn.Bottleneck({channels}, 2{strided}{act}{se})",
        f"enn.CoordConv2d({channels}, {out_channels}, 3, padding=1{strided})",
        f"tnn.WSConv2d({channels}, {out_channels}, 3, padding=1{strided}{bias})",
        f"tnn.SWSConv2d({channels}, {out_channels}, 3, padding=1{strided}{bias})",
    ]
    keeping = [
        f"tnn.ConvNeXtBlock({channels}, kernel_size={odd}, expansion=2, layer_scale=0.5{depth})",
        f"tnn.SqueezeExcitation({channels}, {choices.pick(4, 2)}{gate})",
        f"tnn.LayerScale({channels}, {choices.pick('0.5', '1e-6')})",
        f"enn.SEBlock({channels}, ratio=2)",
        f"enn.CLayerNorm({channels})",
        "enn.PFLayerNorm()",
    ]
    code = choices.pick_from(changing + keeping)
    if code in keeping:
        return Layer(code, channels, sizes)
    return Layer(code, 8 if "Bottleneck" in code else out_channels, after)


def conv_norm_act(choices: Choices, channels: int, sizes: Sizes) -> Layer:
    """The most frequent sequence of all models."""
    first = conv(choices, channels, sizes)
    second = norm(choices, first.channels, first.sizes)
    act = choices.pick("nn.ReLU()", "nn.ReLU(inplace=True)", "nn.SiLU()")
    return Layer(f"nn.Sequential({first.code}, {second.code}, {act})", second.channels, second.sizes)


def sequence(choices: Choices, channels: int, sizes: Sizes, level: int = 0) -> Layer:
    """A ``nn.Sequential``, which may contain another."""
    layers = [any_layer(choices, channels, sizes, level + 1)]
    while len(layers) < 3 and choices.happens(0.6):
        layers.append(any_layer(choices, layers[-1].channels, layers[-1].sizes, level + 1))
    codes = [layer.code for layer in layers]
    if choices.happens(0.2):
        named = ", ".join(f"{name}={code}" for name, code in zip(("first", "second", "third"), codes, strict=False))
        return Layer(f"nn.Sequential(OrderedDict({named}))", layers[-1].channels, layers[-1].sizes)
    return Layer(f"nn.Sequential({', '.join(codes)})", layers[-1].channels, layers[-1].sizes)


def any_layer(choices: Choices, channels: int, sizes: Sizes, level: int = 0) -> Layer:
    """A module of any kind."""
    kinds: list[Callable[[Choices, int, Sizes], Layer]] = [
        plain_conv,
        conv,
        conv,
        norm,
        activation,
        activation,
        conv_norm_act,
        our_layer,
        our_layer,
        pool,
        small_layer,
    ]
    if level < 2:
        kinds.append(partial(sequence, level=level))
    return choices.pick_from(kinds)(choices, channels, sizes)
