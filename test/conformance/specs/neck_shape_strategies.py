"""Shape strategies of the staged layers for necks and decoders, behind the adapters of their first samples."""

from functools import partial
from typing import Any

from hypothesis import strategies as st
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.testing import ShapeExample

from .shape_strategies import BATCH, IMAGE, SIZE, width

__all__ = ["aspp", "concatenation", "csp_block", "feature_pyramid", "path_aggregation", "sppf", "up_block"]

CHANNELS = st.integers(1, 4)


def _same_size(kwargs: dict[str, Any], shape: tuple[int, ...], channels: int, out_channels: int) -> ShapeExample:
    """A layer that keeps height and width, and needs pixels."""
    fits = shape[1] == channels and 0 not in shape[2:]
    return ShapeExample(kwargs, shape, (shape[0], out_channels, *shape[2:]) if fits else None)


@st.composite
def concatenation(draw: st.DrawFn) -> ShapeExample:
    """The input and its double are joined along any dimension."""
    shape = draw(st.lists(SIZE, max_size=4))
    dim = draw(st.integers(-4, 4))
    if not -len(shape) <= dim < len(shape):
        return ShapeExample({"dim": dim}, tuple(shape), None)
    out = [2 * size if axis == dim % len(shape) else size for axis, size in enumerate(shape)]
    return ShapeExample({"dim": dim}, tuple(shape), tuple(out))


@st.composite
def aspp(draw: st.DrawFn) -> ShapeExample:
    channels, out_channels = draw(CHANNELS), draw(CHANNELS)
    kwargs = {"in_channels": channels, "out_channels": out_channels}
    kwargs["atrous_rates"] = draw(st.lists(st.integers(1, 12), max_size=3))
    return _same_size(kwargs, (draw(BATCH), draw(width(channels)), *draw(IMAGE)), channels, out_channels)


@st.composite
def sppf(draw: st.DrawFn) -> ShapeExample:
    channels, out_channels = draw(CHANNELS), draw(CHANNELS)
    kwargs = {"in_channels": channels, "out_channels": out_channels, "pools": draw(st.integers(1, 4))}
    kwargs["kernel_size"] = draw(st.sampled_from([1, 3, 5]))
    return _same_size(kwargs, (draw(BATCH), draw(width(channels)), *draw(IMAGE)), channels, out_channels)


@st.composite
def csp_block(draw: st.DrawFn) -> ShapeExample:
    channels, out_channels = draw(CHANNELS), draw(CHANNELS)
    kwargs = {"in_channels": channels, "out_channels": out_channels, "depth": draw(st.integers(1, 3))}
    kwargs |= {"aggregates": draw(st.booleans()), "block": draw(st.sampled_from([tnn.BasicBlock, tnn.ConvNormAct]))}
    return _same_size(kwargs, (draw(BATCH), draw(width(channels)), *draw(IMAGE)), channels, out_channels)


@st.composite
def up_block(draw: st.DrawFn) -> ShapeExample:
    channels, skip_channels, out_channels = draw(CHANNELS), draw(CHANNELS), draw(CHANNELS)
    kwargs = {"in_channels": channels, "skip_channels": skip_channels, "out_channels": out_channels}
    kwargs["mode"] = draw(st.sampled_from(["nearest", "bilinear"]))
    if draw(st.booleans()):
        kwargs["up_layer"] = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
    total = channels + skip_channels
    return _same_size(kwargs, (draw(BATCH), draw(width(total)), *draw(IMAGE)), total, out_channels)


@st.composite
def feature_pyramid(draw: st.DrawFn) -> ShapeExample:
    channels, out_channels = draw(st.lists(CHANNELS, min_size=1, max_size=4)), draw(CHANNELS)
    kwargs = {"in_channels_list": channels, "out_channels": out_channels}
    shape = (draw(BATCH), draw(width(sum(channels))), *draw(IMAGE))
    return _same_size(kwargs, shape, sum(channels), out_channels * len(channels))


@st.composite
def path_aggregation(draw: st.DrawFn) -> ShapeExample:
    channels, levels = draw(CHANNELS), draw(st.integers(1, 4))
    kwargs = {"channels": channels, "levels": levels}
    shape = (draw(BATCH), draw(width(channels * levels)), *draw(IMAGE))
    return _same_size(kwargs, shape, channels * levels, channels * levels)
