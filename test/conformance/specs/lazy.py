"""Lazy layers; the checks run on the materialized layers."""

from functools import partial

from hypothesis import strategies as st
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample, ShapeExample

from .. import reference as ref
from . import invalid_inputs, shape_strategies

__all__ = ["SPECS"]


_BATCH = st.integers(0, 3)
_SIZE = st.integers(0, 9)


@st.composite
def _conv_shapes(draw: st.DrawFn) -> ShapeExample:
    kernel, groups = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 3))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    out_channels = groups * draw(st.integers(1, 3))
    shape = draw(st.tuples(_BATCH, _SIZE, _SIZE, _SIZE))
    kwargs = {"out_channels": out_channels, "kernel_size": kernel, "stride": stride, "groups": groups}
    is_refused = shape[1] == 0 or shape[1] % groups != 0
    out_shape = None if is_refused else shape_strategies.same_size(shape, out_channels, kernel, stride, dilation)
    return ShapeExample(kwargs | {"dilation": dilation}, shape, out_shape)


@st.composite
def _gate_shapes(draw: st.DrawFn) -> ShapeExample:
    shape = draw(st.tuples(_BATCH, _SIZE, _SIZE, _SIZE))
    return ShapeExample({"squeeze_channels": draw(st.integers(1, 4))}, shape, None if 0 in shape[1:] else shape)


def _not_images(channels: int) -> tuple[BadInput, ...]:
    rank = "input must have 4 dimensions, got"
    return (
        BadInput(InvalidInput.RANK, (), ValueError, rf"{rank} 0: shape \[\]"),
        BadInput(InvalidInput.RANK, (channels,), ValueError, rf"{rank} 1: shape \[{channels}\]"),
        BadInput(InvalidInput.RANK, (channels, 7, 9), ValueError, rf"{rank} 3: shape \[{channels}, 7, 9\]"),
        BadInput(InvalidInput.RANK, (2, channels, 4, 7, 9), ValueError, f"{rank} 5"),
        *invalid_inputs.no_tensors(),
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
            *invalid_inputs.channels("out_channels"),
            BadArguments(
                InvalidInput.GROUPS, {"groups": 3}, ValueError, "out_channels must be divisible by groups, got 5 and 3"
            ),
            BadArguments(InvalidInput.GROUPS, {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
            BadArguments(InvalidInput.GROUPS, {"groups": "2"}, TypeError, "groups must be an int, got '2'"),
            *invalid_inputs.numbers_each(2, "kernel_size", "stride", "dilation"),
            BadArguments(InvalidInput.WINDOW, {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
            BadArguments(
                InvalidInput.EVEN_KERNEL,
                {"kernel_size": 4},
                ValueError,
                "kernel_size must be odd if padding=None.*got 4",
            ),
            BadArguments(InvalidInput.CHOICE, {"padding": "full"}, ValueError, "Invalid padding string 'full'"),
            *invalid_inputs.norms(5),
            *invalid_inputs.layers("activation_layer"),
            BadArguments(
                InvalidInput.CHOICE,
                {"activation_layer": nn.PReLU(7)},
                ValueError,
                "activation_layer has num_parameters=7, expected 5",
            ),
            BadArguments(InvalidInput.CHOICE, {"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
            BadArguments(InvalidInput.CHOICE, {"inplace": 1}, TypeError, "inplace must be True or False, got 1"),
            BadArguments(
                InvalidInput.KEYWORD, {"in_channels": 3}, TypeError, "unexpected keyword argument 'in_channels'"
            ),
        ),
        (
            *_not_images(3),
            *invalid_inputs.types((2, 3, 7, 9)),
            *invalid_inputs.no_pixels(3),
            BadInput(InvalidInput.WIDTH, (2, 0, 7, 9), ValueError, "in_channels must be at least 1, got 0"),
            BadInput(
                InvalidInput.WIDTH,
                (2, 3, 7, 9),
                ValueError,
                "in_channels must be divisible by groups, got 3 and 2",
                kwargs={"groups": 2, "out_channels": 4},
            ),
        ),
        shape_strategy=_conv_shapes(),
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
            *invalid_inputs.channels("squeeze_channels"),
            *invalid_inputs.layers("activation", "scale_activation"),
            BadArguments(
                InvalidInput.CHOICE,
                {"activation": nn.PReLU(7)},
                ValueError,
                "activation has num_parameters=7, expected 3",
            ),
            BadArguments(
                InvalidInput.KEYWORD, {"input_channels": 6}, TypeError, "unexpected keyword argument 'input_channels'"
            ),
        ),
        (
            *_not_images(6),
            *invalid_inputs.types((2, 6, 7, 9)),
            BadInput(InvalidInput.WIDTH, (2, 0, 7, 9), ValueError, "input_channels must be at least 1, got 0"),
            BadInput(InvalidInput.NO_PIXELS, (2, 6, 0, 9), ValueError, r"at least one pixel, got shape \[2, 6, 0, 9\]"),
            BadInput(
                InvalidInput.WIDTH,
                (2, 6, 7, 9),
                ValueError,
                "scale_activation has num_parameters=7, expected 6",
                kwargs={"scale_activation": nn.PReLU(7)},
            ),
        ),
        shape_strategy=_gate_shapes(),
    ),
)
