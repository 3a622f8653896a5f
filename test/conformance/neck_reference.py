"""The staged layers for necks and decoders in NumPy and plain loops, in float64, from the equations of their papers."""

import math
from itertools import product

import numpy as np

from .reference import Array, Weights, batch_norm, conv_norm_act, group_norm, identity, linear, relu, silu

__all__ = ["aspp", "concatenation", "csp_block", "feature_pyramid", "path_aggregation", "sppf", "up_block"]


def below(weights: Weights, prefix: str) -> dict[str, Array]:
    """The weights of one module."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def nearest(x: Array, rows: int, columns: int) -> Array:
    out = np.empty((*x.shape[:2], rows, columns))
    for i, j in product(range(rows), range(columns)):
        out[:, :, i, j] = x[:, :, i * x.shape[2] // rows, j * x.shape[3] // columns]
    return out


def bilinear(x: Array, rows: int, columns: int) -> Array:
    """Pixels are squares, whose centres are interpolated."""

    def neighbours(i: int, size: int, out: int) -> tuple[int, int, float]:
        place = max(0.0, (i + 0.5) * size / out - 0.5)
        low = min(math.floor(place), size - 1)
        return low, min(low + 1, size - 1), place - low

    out = np.empty((*x.shape[:2], rows, columns))
    for i, j in product(range(rows), range(columns)):
        (top, bottom, down), (left, right, across) = neighbours(i, x.shape[2], rows), neighbours(j, x.shape[3], columns)
        upper = (1 - across) * x[:, :, top, left] + across * x[:, :, top, right]
        lower = (1 - across) * x[:, :, bottom, left] + across * x[:, :, bottom, right]
        out[:, :, i, j] = (1 - down) * upper + down * lower
    return out


def concatenation(x: Array, weights: Weights, training: bool, *, dim: int = 1) -> Array:
    """The input beside its double."""
    out = np.empty([2 * size if axis == dim % x.ndim else size for axis, size in enumerate(x.shape)])
    first, second = (np.moveaxis(out, dim, 0)[half] for half in (slice(x.shape[dim]), slice(x.shape[dim], None)))
    first[...], second[...] = np.moveaxis(x, dim, 0), 2 * np.moveaxis(x, dim, 0)
    return out


def aspp(x: Array, weights: Weights, training: bool, *, rates: tuple[int, ...], norm: str = "batch") -> Array:
    """arXiv 1706.05587, figure 5."""
    outputs = [conv_norm_act(x, weights, training, prefix="convs.0.", kernel_size=1, norm=norm)]
    for i, rate in enumerate(rates, start=1):
        outputs.append(conv_norm_act(x, weights, training, prefix=f"convs.{i}.", dilation=rate, norm=norm))
    last = f"convs.{len(rates) + 1}"
    mean = linear(x.reshape(*x.shape[:2], -1).mean(2), weights[f"{last}.1.weight"][:, :, 0, 0], None)[:, :, None, None]
    if norm == "batch":
        mean = batch_norm(mean, weights, f"{last}.2", training)
    else:
        mean = group_norm(mean, weights, f"{last}.2", int(norm.removeprefix("group")))
    mean = relu(mean)
    outputs.append(np.broadcast_to(mean, outputs[0].shape))
    return conv_norm_act(np.concatenate(outputs, 1), weights, training, prefix="project.", kernel_size=1, norm=norm)


def largest(x: Array, radius: int) -> Array:
    """The maximum over a square window, inside the image."""
    out = np.empty_like(x)
    for i, j in product(range(x.shape[2]), range(x.shape[3])):
        window = x[:, :, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
        out[:, :, i, j] = window.max((2, 3))
    return out


def sppf(x: Array, weights: Weights, training: bool, *, kernel: int = 5, pools: int = 3, activation=silu) -> Array:
    """arXiv 1406.4729: maxima over windows of several sizes."""
    x = conv_norm_act(x, weights, training, prefix="reduce.", kernel_size=1, activation=activation)
    outputs = [x, *(largest(x, i * (kernel // 2)) for i in range(1, pools + 1))]
    x = np.concatenate(outputs, 1)
    return conv_norm_act(x, weights, training, prefix="project.", kernel_size=1, activation=activation)


def csp_block(
    x: Array, weights: Weights, training: bool, *, block, depth: int, aggregates: bool = False, activation=silu
) -> Array:
    """arXiv 1911.11929, figure 2, and 2207.02696, figure 2c; ``block`` is a reference."""
    halves = conv_norm_act(x, weights, training, prefix="split.", kernel_size=1, activation=activation)
    skip, chain = halves[:, : halves.shape[1] // 2], halves[:, halves.shape[1] // 2 :]
    outputs = [skip, chain]
    for i in range(depth):
        chain = block(chain, below(weights, f"blocks.{i}."), training)
        outputs.append(chain)
    x = np.concatenate(outputs if aggregates else [chain, skip], 1)
    return conv_norm_act(x, weights, training, prefix="project.", kernel_size=1, activation=activation)


def transposed_conv(x: Array, weight: Array, bias: Array) -> Array:
    """With a kernel as large as the stride, so that windows do not overlap."""
    kernel = weight.shape[2:]
    out = np.empty((x.shape[0], weight.shape[1], *(size * k for size, k in zip(x.shape[2:], kernel, strict=True))))
    for i, j in product(range(out.shape[2]), range(out.shape[3])):
        pixel = x[:, :, i // kernel[0], j // kernel[1]]
        out[:, :, i, j] = pixel @ weight[:, :, i % kernel[0], j % kernel[1]] + bias
    return out


def up_block(
    x: Array, weights: Weights, training: bool, *, in_channels: int, up: str = "transposed", norm: str = "batch"
) -> Array:
    """arXiv 1505.04597, figure 1, with padding, on the first channels at half the size; the others are the skip."""
    weights = below(weights, "layer.")
    skip, x = x[:, in_channels:], x[:, :in_channels, ::2, ::2]
    if up == "transposed":
        x = nearest(transposed_conv(x, weights["up.weight"], weights["up.bias"]), *skip.shape[2:])
    else:
        x = {"nearest": nearest, "bilinear": bilinear}[up](x, *skip.shape[2:])
    x = np.concatenate([skip, x], 1)
    for name in ("conv1.", "conv2."):
        x = conv_norm_act(x, weights, training, prefix=name, norm=norm)
    return x


def levels_of(x: Array, channels: tuple[int, ...]) -> list[Array]:
    """Some of the channels at each level, at half the size of the level before."""
    ends = np.cumsum(channels)
    return [x[:, end - c : end, :: 2**i, :: 2**i] for i, (c, end) in enumerate(zip(channels, ends, strict=True))]


def joined(outputs: list[Array]) -> Array:
    return np.concatenate([nearest(output, *outputs[0].shape[2:]) for output in outputs], 1)


def feature_pyramid(
    x: Array, weights: Weights, training: bool, *, channels: tuple[int, ...], norm: str = "none"
) -> Array:
    """arXiv 1612.03144, figure 3."""
    weights = below(weights, "layer.")
    options = {"norm": norm, "activation": identity}
    merged: list[Array] = []
    for i, level in reversed(list(enumerate(levels_of(x, channels)))):
        z = conv_norm_act(level, weights, training, prefix=f"inner_blocks.{i}.", kernel_size=1, **options)
        merged.insert(0, z + nearest(merged[0], *z.shape[2:]) if merged else z)
    return joined(
        [conv_norm_act(z, weights, training, prefix=f"layer_blocks.{i}.", **options) for i, z in enumerate(merged)]
    )


def path_aggregation(
    x: Array, weights: Weights, training: bool, *, channels: int, levels: int, norm: str = "none", activation=relu
) -> Array:
    """arXiv 1803.01534, figure 2."""
    weights = below(weights, "layer.")
    options = {"norm": norm, "activation": activation}
    first, *others = levels_of(x, (channels,) * levels)
    outputs = [first]
    for i, level in enumerate(others):
        down = conv_norm_act(outputs[-1], weights, training, prefix=f"down.{i}.", stride=2, **options)
        total = level + nearest(down, *level.shape[2:])
        outputs.append(conv_norm_act(total, weights, training, prefix=f"fuse.{i}.", **options))
    return joined(outputs)
