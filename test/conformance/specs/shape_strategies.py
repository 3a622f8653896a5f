"""Strategies that draw arguments and sizes, and the shape of the output by formulas in plain Python."""

import math
from typing import Any

from hypothesis import strategies as st
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.testing import ShapeExample

Shape = tuple[int, ...]

BATCH = st.integers(0, 3)
SIZE = st.integers(0, 9)
IMAGE = st.tuples(SIZE, SIZE)
NORM_1D = st.sampled_from([None, nn.BatchNorm1d])


def sizes(dims: int) -> st.SearchStrategy[Shape]:
    return st.tuples(*[SIZE] * dims)


def one_or_each(values: st.SearchStrategy[int], dims: int) -> st.SearchStrategy[int | Shape]:
    """An argument for all dimensions, or one number for each."""
    return values | st.tuples(*[values] * dims)


def each(value: int | Shape, dims: int) -> Shape:
    return (value,) * dims if isinstance(value, int) else value


@st.composite
def width(draw: st.DrawFn, expected: int) -> int:
    """The number of channels that a layer expects, or sometimes another."""
    return draw(SIZE) if draw(st.integers(0, 9)) == 9 else expected


def slide(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The number of positions of a window in one dimension; below 1 if it does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolve(
    shape: Shape, out_channels: int, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape
) -> Shape | None:
    """The output shape of a convolution; ``None`` if it raises an error.

    torch rejects images without pixels, even if padding makes them as large as the kernel, unless the batch is empty.
    """
    batch, _, *image = shape
    out = tuple(map(slide, image, kernel, stride, padding, dilation))
    if min(out) < 1 or (batch > 0 and 0 in image):
        return None
    return (batch, out_channels, *out)


def same_size(shape: Shape, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> Shape | None:
    """The output shape of a square convolution with an odd kernel and padding to keep the size."""
    pad = (kernel - 1) // 2 * dilation
    return convolve(shape, out_channels, (kernel,) * 2, (stride,) * 2, (pad,) * 2, (dilation,) * 2)


@st.composite
def _sliding(draw: st.DrawFn, dims: int) -> tuple[dict[str, Any], tuple[Shape, Shape, Shape, Shape]]:
    """Arguments of a convolution in all accepted forms, and kernel, stride, padding and dilation of each dimension."""
    how = draw(st.sampled_from(["default", "numbers", "same", "valid"]))
    odd = how in ("default", "same")  # torch warns about "same" with an even kernel, which costs a copy
    kernel = draw(one_or_each(st.sampled_from([1, 3, 5]) if odd else st.integers(1, 4), dims))
    stride = 1 if how == "same" else draw(one_or_each(st.integers(1, 3), dims))
    dilation = draw(one_or_each(st.integers(1, 3), dims))
    kwargs: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "dilation": dilation}
    if odd:
        padding = tuple((k - 1) // 2 * d for k, d in zip(each(kernel, dims), each(dilation, dims), strict=True))
        if how == "same":
            kwargs["padding"] = "same"
    elif how == "valid":
        padding = (0,) * dims
        kwargs["padding"] = "valid"
    else:
        kwargs["padding"] = draw(one_or_each(st.integers(0, 3), dims))
        padding = each(kwargs["padding"], dims)
    return kwargs, (each(kernel, dims), each(stride, dims), padding, each(dilation, dims))


@st.composite
def conv_norm_act(draw: st.DrawFn, dims: int) -> ShapeExample:
    groups = draw(st.integers(1, 3))
    channels, out_channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    kwargs, numbers = draw(_sliding(dims))
    kwargs |= {"in_channels": channels, "out_channels": out_channels, "groups": groups}
    shape = (draw(BATCH), draw(width(channels)), *draw(sizes(dims)))
    return ShapeExample(kwargs, shape, convolve(shape, out_channels, *numbers) if shape[1] == channels else None)


@st.composite
def conv2d(draw: st.DrawFn, needs_pixels: bool = False) -> ShapeExample:
    """At least two channels per group, so that every filter has weights to standardize."""
    groups = draw(st.integers(1, 3))
    channels, out_channels = groups * draw(st.integers(2, 3)), groups * draw(st.integers(1, 3))
    kernel = draw(one_or_each(st.integers(1, 4), 2))
    stride, dilation = draw(one_or_each(st.integers(1, 3), 2)), draw(one_or_each(st.integers(1, 3), 2))
    padding = draw(one_or_each(st.integers(0, 3), 2))
    kwargs: dict[str, Any] = {"in_channels": channels, "out_channels": out_channels, "kernel_size": kernel}
    kwargs |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    out = convolve(shape, out_channels, each(kernel, 2), each(stride, 2), each(padding, 2), each(dilation, 2))
    is_refused = shape[1] != channels or (needs_pixels and 0 in shape[2:])
    return ShapeExample(kwargs, shape, None if is_refused else out)


@st.composite
def conv2d_same(draw: st.DrawFn) -> ShapeExample:
    groups = draw(st.integers(1, 3))
    channels, out_channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    kernel, stride, dilation = (draw(one_or_each(st.integers(1, largest), 2)) for largest in (5, 4, 3))
    kwargs: dict[str, Any] = {"in_channels": channels, "out_channels": out_channels, "groups": groups}
    kwargs |= {"kernel_size": kernel, "stride": stride, "dilation": dilation}
    batch, *image = shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    out = (batch, out_channels, *(math.ceil(n / s) for n, s in zip(image[1:], each(stride, 2), strict=True)))
    return ShapeExample(kwargs, shape, out if shape[1] == channels and 0 not in shape[2:] else None)


@st.composite
def depthwise_separable(draw: st.DrawFn) -> ShapeExample:
    channels, out_channels = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    kwargs, numbers = draw(_sliding(2))
    kwargs |= {"in_channels": channels, "out_channels": out_channels, "depth_multiplier": draw(st.integers(1, 3))}
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    return ShapeExample(kwargs, shape, convolve(shape, out_channels, *numbers) if shape[1] == channels else None)


@st.composite
def basic_block(draw: st.DrawFn) -> ShapeExample:
    channels, planes = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kwargs = {"inplanes": channels, "planes": planes, "stride": stride, "dilation": dilation}
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    return ShapeExample(kwargs, shape, same_size(shape, planes, 3, stride, dilation) if shape[1] == channels else None)


@st.composite
def bottleneck(draw: st.DrawFn) -> ShapeExample:
    channels, planes = draw(st.integers(1, 9)), draw(st.integers(2, 3))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kwargs = {"inplanes": channels, "planes": planes, "stride": stride, "dilation": dilation}
    kwargs |= {"groups": draw(st.integers(1, 3)), "base_width": draw(st.sampled_from([32, 64, 128]))}
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    return ShapeExample(
        kwargs, shape, same_size(shape, 4 * planes, 3, stride, dilation) if shape[1] == channels else None
    )


@st.composite
def inverted(
    draw: st.DrawFn, in_name: str, out_name: str, *, dilates: bool = False, squeezes: bool = False
) -> ShapeExample:
    """The blocks of MobileNet and EfficientNet: only the stride changes the size."""
    channels, out_channels = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    kernel, stride = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 2))
    dilation = draw(st.integers(1, 3)) if dilates else 1
    kwargs: dict[str, Any] = {in_name: channels, out_name: out_channels, "kernel_size": kernel, "stride": stride}
    kwargs["expand_ratio"] = draw(st.sampled_from([1, 1.5, 2, 6]))
    if dilates:
        kwargs["dilation"] = dilation
    if squeezes:
        kwargs["se_layer"] = draw(st.sampled_from([None, tnn.SqueezeExcitation]))
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    out_shape = same_size(shape, out_channels, kernel, stride, dilation)
    return ShapeExample(kwargs, shape, out_shape if shape[1] == channels else None)


@st.composite
def convnext_block(draw: st.DrawFn) -> ShapeExample:
    channels, kernel = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 5, 7]))
    kwargs = {"dim": channels, "kernel_size": kernel, "expansion": draw(st.integers(1, 4))}
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    return ShapeExample(kwargs, shape, same_size(shape, channels, kernel) if shape[1] == channels else None)


@st.composite
def squeeze_excitation(draw: st.DrawFn) -> ShapeExample:
    channels = draw(st.integers(1, 6))
    kwargs = {"input_channels": channels, "squeeze_channels": draw(st.integers(1, 4))}
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    return ShapeExample(kwargs, shape, shape if shape[1] == channels and 0 not in shape[2:] else None)


@st.composite
def linear_dropout_act(draw: st.DrawFn) -> ShapeExample:
    features, out_features = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    kwargs = {"in_features": features, "out_features": out_features, "dropout": draw(st.floats(0, 1))}
    kwargs |= {"bias": draw(st.booleans()), "norm_layer": draw(NORM_1D)}
    shape = (*draw(st.lists(SIZE, max_size=3)), draw(width(features)))
    return _projection(kwargs, shape, features, out_features, is_flat=kwargs["norm_layer"] is not None)


@st.composite
def mlp(draw: st.DrawFn) -> ShapeExample:
    features, hidden = draw(st.integers(1, 6)), draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    kwargs = {"in_channels": features, "hidden_channels": hidden, "norm_layer": draw(NORM_1D)}
    shape = (*draw(st.lists(SIZE, max_size=3)), draw(width(features)))
    has_norm = kwargs["norm_layer"] is not None and len(hidden) > 1  # it is between two linear layers
    return _projection(kwargs, shape, features, hidden[-1], is_flat=has_norm)


def _projection(kwargs: dict[str, Any], shape: Shape, features: int, out_features: int, is_flat: bool) -> ShapeExample:
    """Inputs of any rank; of rank 2 with ``nn.BatchNorm1d``, whose features are dimension 1."""
    fits = shape[-1] == features and (len(shape) == 2 or not is_flat)
    return ShapeExample(kwargs, shape, (*shape[:-1], out_features) if fits else None)


@st.composite
def image_norm(draw: st.DrawFn, name: str) -> ShapeExample:
    """A layer that keeps the shape of images of any size, and rejects other dimensions."""
    channels = draw(st.integers(1, 6))
    image = draw(IMAGE | st.lists(SIZE, max_size=3).map(tuple))
    shape = (draw(BATCH), draw(width(channels)), *image)
    return ShapeExample({name: channels}, shape, shape if shape[1] == channels and len(shape) == 4 else None)


@st.composite
def layer_scale(draw: st.DrawFn) -> ShapeExample:
    channels, place = draw(st.integers(1, 6)), draw(st.sampled_from([1, -1]))
    others = draw(st.lists(SIZE, max_size=4))
    size = draw(width(channels))
    kwargs = {"dim": channels, "channels_dim": place}
    if place == -1:
        shape = (*others, size)
        return ShapeExample(kwargs, shape, shape if size == channels else None)
    shape = (*others[:1], size, *others[1:])  # of rank 1 if there are no others
    return ShapeExample(kwargs, shape, shape if size == channels and len(shape) > 1 else None)


@st.composite
def permute(draw: st.DrawFn) -> ShapeExample:
    rank = draw(st.integers(1, 5))
    order = draw(st.permutations(range(rank)))
    dims = [d - rank if draw(st.booleans()) else d for d in order]
    shape = draw(sizes(rank) | st.lists(SIZE, max_size=6).map(tuple))
    return ShapeExample({"dims": dims}, shape, tuple(shape[d] for d in order) if len(shape) == rank else None)


@st.composite
def stochastic_depth(draw: st.DrawFn) -> ShapeExample:
    kwargs = {"p": draw(st.floats(0, 1)), "mode": draw(st.sampled_from(["row", "batch"]))}
    shape = tuple(draw(st.lists(SIZE, max_size=4)))
    return ShapeExample(kwargs, shape, shape or None)


@st.composite
def global_response_norm(draw: st.DrawFn) -> ShapeExample:
    """Any number of dimensions between batch and channels."""
    channels, place = draw(st.integers(1, 6)), draw(st.sampled_from([1, -1]))
    image = draw(st.lists(SIZE, max_size=3))
    size = draw(width(channels))
    shape = (draw(BATCH), *image, size) if place == -1 else (draw(BATCH), size, *image)
    return ShapeExample({"dim": channels, "channels_dim": place}, shape, shape if size == channels and image else None)


@st.composite
def universal_inverted_bottleneck(draw: st.DrawFn) -> ShapeExample:
    """Only the stride changes the size."""
    channels, out_channels = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    start, middle = (draw(st.sampled_from([None, 1, 3, 5])) for _ in range(2))
    stride = 1 if start is None and middle is None else draw(st.integers(1, 2))
    kwargs: dict[str, Any] = {"in_channels": channels, "out_channels": out_channels, "stride": stride}
    kwargs |= {"start_kernel_size": start, "middle_kernel_size": middle}
    kwargs["expand_ratio"] = draw(st.sampled_from([1, 1.5, 2, 6]))
    kwargs["se_layer"] = draw(st.sampled_from([None, tnn.SqueezeExcitation]))
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    return ShapeExample(kwargs, shape, same_size(shape, out_channels, 1, stride) if shape[1] == channels else None)
