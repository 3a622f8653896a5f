"""Layers that read their channels from the first batch: the matrix runs over what they become."""

from functools import partial

from hypothesis import strategies as st
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.testing import BadArguments, BadInput, Geometry, LayerSpec, Misuse, Sample

from .. import reference as ref
from . import geometries, misuse

__all__ = ["SPECS"]


_BATCH = st.integers(0, 3)
_SIZE = st.integers(0, 9)


@st.composite
def _conv_geometries(draw: st.DrawFn) -> Geometry:
    kernel, groups = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 3))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    out_channels = groups * draw(st.integers(1, 3))
    shape = draw(st.tuples(_BATCH, _SIZE, _SIZE, _SIZE))
    kwargs = {"out_channels": out_channels, "kernel_size": kernel, "stride": stride, "groups": groups}
    is_refused = shape[1] == 0 or shape[1] % groups != 0
    out_shape = None if is_refused else geometries.same_size(shape, out_channels, kernel, stride, dilation)
    return Geometry(kwargs | {"dilation": dilation}, shape, out_shape)


@st.composite
def _gate_geometries(draw: st.DrawFn) -> Geometry:
    shape = draw(st.tuples(_BATCH, _SIZE, _SIZE, _SIZE))
    return Geometry({"squeeze_channels": draw(st.integers(1, 4))}, shape, None if 0 in shape[1:] else shape)


def _not_images(channels: int) -> tuple[BadInput, ...]:
    rank = "input must have 4 dimensions, got"
    return (
        BadInput(Misuse.RANK, (), ValueError, rf"{rank} 0: shape \[\]"),
        BadInput(Misuse.RANK, (channels,), ValueError, rf"{rank} 1: shape \[{channels}\]"),
        BadInput(Misuse.RANK, (channels, 7, 9), ValueError, rf"{rank} 3: shape \[{channels}, 7, 9\]"),
        BadInput(Misuse.RANK, (2, channels, 4, 7, 9), ValueError, f"{rank} 5"),
        *misuse.no_tensors(),
    )


SPECS: tuple[LayerSpec, ...] = (
    LayerSpec(
        tnn.LazyConvNormAct,
        (
            Sample("default", {"out_channels": 5}, (2, 3, 7, 9), ref.conv_norm_act, reads_mode=True),
            Sample(
                "groups silu",
                {"out_channels": 6, "kernel_size": (3, 1), "stride": (1, 2), "groups": 2, "dilation": (2, 1)}
                | {"activation_layer": nn.SiLU},
                (2, 4, 9, 11),
                partial(
                    ref.conv_norm_act,
                    kernel_size=(3, 1),
                    stride=(1, 2),
                    dilation=(2, 1),
                    groups=2,
                    activation=ref.silu,
                ),
                reads_mode=True,
            ),
            Sample(
                "group norm",
                {"out_channels": 4, "norm_layer": partial(nn.GroupNorm, 2), "inplace": False},
                (2, 3, 7, 9),
                partial(ref.conv_norm_act, norm="group2"),
                reads_mode=False,
            ),
            Sample(
                "conv alone",
                {"out_channels": 5, "kernel_size": 2, "padding": 0, "norm_layer": None, "activation_layer": None},
                (2, 3, 7, 9),
                partial(ref.conv_norm_act, kernel_size=2, padding=0, norm="none", activation=ref.identity),
                reads_mode=False,
            ),
        ),
        (
            *misuse.widths("out_channels"),
            BadArguments(
                Misuse.GROUPS, {"groups": 3}, ValueError, "out_channels must be divisible by groups, got 5 and 3"
            ),
            BadArguments(Misuse.GROUPS, {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
            BadArguments(Misuse.GROUPS, {"groups": "2"}, TypeError, "groups must be an int, got '2'"),
            *misuse.numbers_each(2, "kernel_size", "stride", "dilation"),
            BadArguments(Misuse.WINDOW, {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
            BadArguments(
                Misuse.EVEN_KERNEL, {"kernel_size": 4}, ValueError, "kernel_size must be odd if padding=None.*got 4"
            ),
            BadArguments(Misuse.CHOICE, {"padding": "full"}, ValueError, "Invalid padding string 'full'"),
            *misuse.norms(5),
            *misuse.layers("activation_layer"),
            BadArguments(
                Misuse.CHOICE,
                {"activation_layer": nn.PReLU(7)},
                ValueError,
                "activation_layer has num_parameters=7, expected 5",
            ),
            BadArguments(Misuse.CHOICE, {"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
            BadArguments(Misuse.CHOICE, {"inplace": 1}, TypeError, "inplace must be True or False, got 1"),
            BadArguments(Misuse.KEYWORD, {"in_channels": 3}, TypeError, "unexpected keyword argument 'in_channels'"),
        ),
        (
            *_not_images(3),
            *misuse.types((2, 3, 7, 9)),
            *misuse.no_pixels(3),
            BadInput(Misuse.WIDTH, (2, 0, 7, 9), ValueError, "in_channels must be at least 1, got 0"),
            BadInput(
                Misuse.WIDTH,
                (2, 3, 7, 9),
                ValueError,
                "in_channels must be divisible by groups, got 3 and 2",
                kwargs={"groups": 2, "out_channels": 4},
            ),
        ),
        geometries=_conv_geometries(),
    ),
    LayerSpec(
        tnn.LazySqueezeExcitation,
        (
            Sample("default", {"squeeze_channels": 3}, (2, 6, 7, 9), ref.squeeze_excitation, reads_mode=False),
            Sample(
                "silu",
                {"squeeze_channels": 4, "activation": nn.SiLU},
                (3, 6, 5, 4),
                partial(ref.squeeze_excitation, activation=ref.silu),
                reads_mode=False,
            ),
        ),
        (
            *misuse.widths("squeeze_channels"),
            *misuse.layers("activation", "scale_activation"),
            BadArguments(
                Misuse.CHOICE,
                {"activation": nn.PReLU(7)},
                ValueError,
                "activation has num_parameters=7, expected 3",
            ),
            BadArguments(
                Misuse.KEYWORD, {"input_channels": 6}, TypeError, "unexpected keyword argument 'input_channels'"
            ),
        ),
        (
            *_not_images(6),
            *misuse.types((2, 6, 7, 9)),
            BadInput(Misuse.WIDTH, (2, 0, 7, 9), ValueError, "input_channels must be at least 1, got 0"),
            BadInput(Misuse.NO_PIXELS, (2, 6, 0, 9), ValueError, r"at least one pixel, got shape \[2, 6, 0, 9\]"),
            BadInput(
                Misuse.WIDTH,
                (2, 6, 7, 9),
                ValueError,
                "scale_activation has num_parameters=7, expected 6",
                kwargs={"scale_activation": nn.PReLU(7)},
            ),
        ),
        geometries=_gate_geometries(),
    ),
)
