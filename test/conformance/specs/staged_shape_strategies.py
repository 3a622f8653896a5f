"""Shape strategies of the experimental layers."""

from typing import Any

from hypothesis import strategies as st

from torchvision_layers.testing import ShapeExample

from .shape_strategies import BATCH, IMAGE, convolve, each, one_or_each, width

__all__ = [
    "attention",
    "normalized",
    "rep_conv",
    "se_block",
]


@st.composite
def attention(draw: st.DrawFn) -> ShapeExample:
    """Windows of any size, with their centres inside the image."""
    heads, channels = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    out_channels = heads * 2 * draw(st.integers(1, 2))
    kernel = draw(st.tuples(*[st.integers(1, 5)] * 2))
    stride, dilation = draw(st.tuples(*[st.integers(1, 3)] * 2)), draw(st.tuples(*[st.integers(1, 3)] * 2))
    padding = tuple(draw(st.integers(0, d * ((k - 1) // 2))) for k, d in zip(kernel, dilation, strict=True))
    kwargs: dict[str, Any] = {"in_channels": channels, "out_channels": out_channels, "kernel_size": kernel}
    kwargs |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": heads}
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    out = convolve(shape, out_channels, kernel, stride, padding, dilation)
    return ShapeExample(kwargs, shape, out if shape[1] == channels else None)


@st.composite
def normalized(draw: st.DrawFn, name: str | None = None) -> ShapeExample:
    """Images keep their shape if there are two values to normalize; ``name`` is the argument for the channels."""
    dims = draw(st.sampled_from([(1, 2, 3), (2, 3)]))
    channels = draw(st.integers(1, 4))
    shape = (draw(BATCH), draw(width(channels)) if name else channels, *draw(IMAGE))
    values = shape[2] * shape[3] * (shape[1] if 1 in dims else 1)
    kwargs: dict[str, Any] = {"dims": dims} | ({name: channels} if name else {})
    return ShapeExample(kwargs, shape, shape if values > 1 and shape[1] == channels else None)


@st.composite
def se_block(draw: st.DrawFn) -> ShapeExample:
    """With the number of channels, or lazy."""
    ratio = draw(st.integers(1, 3))
    channels = ratio + draw(st.integers(0, 4))
    is_lazy = draw(st.booleans())
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    fits = shape[1] >= ratio if is_lazy else shape[1] == channels
    kwargs = {"ratio": ratio, "in_channels": None if is_lazy else channels}
    return ShapeExample(kwargs, shape, shape if fits and 0 not in shape[2:] else None)


@st.composite
def rep_conv(draw: st.DrawFn) -> ShapeExample:
    """Only the stride changes the size."""
    groups = draw(st.integers(1, 3))
    channels, out_channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, dilation = draw(one_or_each(st.sampled_from([1, 3, 5]), 2)), draw(one_or_each(st.integers(1, 3), 2))
    stride = draw(st.integers(1, 3))
    kwargs: dict[str, Any] = {"in_channels": channels, "out_channels": out_channels, "kernel_size": kernel}
    kwargs |= {"stride": stride, "dilation": dilation, "groups": groups, "branches": draw(st.integers(1, 2))}
    kwargs |= {"pointwise": draw(st.booleans()), "identity": draw(st.booleans())}
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    padding = tuple(d * (k // 2) for k, d in zip(each(kernel, 2), each(dilation, 2), strict=True))
    out = convolve(shape, out_channels, each(kernel, 2), (stride,) * 2, padding, each(dilation, 2))
    return ShapeExample(kwargs, shape, out if shape[1] == channels else None)
