"""The staged layers in NumPy and plain loops, in float64, from the equations of their papers."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np

from .reference import Array, Weights, batch_norm, conv, relu, squeeze_excitation

__all__ = ["c_layer_norm", "coord_conv", "coordinates", "rep_conv", "spatial_attention"]

_TWO = tuple[int, int]


def coordinates(rows: int, columns: int, with_r: bool) -> Array:
    """Channels of rows, columns and perhaps distances from the centre, pixel by pixel."""
    maps = np.zeros((3 if with_r else 2, rows, columns))
    for i, j in product(range(rows), range(columns)):
        y = 2 * i / (rows - 1) - 1 if rows > 1 else 0.0
        z = 2 * j / (columns - 1) - 1 if columns > 1 else 0.0
        maps[:, i, j] = [y, z, math.hypot(y, z)] if with_r else [y, z]
    return maps


def coord_conv(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    with_r: bool = False,
    stride: _TWO = (1, 1),
    padding: _TWO = (0, 0),
    dilation: _TWO = (1, 1),
    groups: int = 1,
) -> Array:
    """arXiv 1807.03247, figure 3: the coordinates are concatenated, to the channels of each group."""
    maps = coordinates(*x.shape[2:], with_r)
    maps = np.broadcast_to(maps, (x.shape[0], *maps.shape))
    parts = []
    for part in np.split(x, groups, axis=1):
        parts += [part, maps]
    return conv(
        np.concatenate(parts, axis=1), weights["weight"], weights.get("bias"), stride, padding, dilation, groups
    )


def spatial_attention(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    kernel: _TWO,
    stride: _TWO = (1, 1),
    padding: _TWO = (0, 0),
    dilation: _TWO = (1, 1),
) -> Array:
    """arXiv 1906.05909, eq. 2 and 3: one query at a time, over the neighbours inside the image."""

    def project(name: str) -> Array:
        return conv(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), (1, 1), (0, 0), (1, 1), 1)

    queries, keys, values = project("query"), project("key"), project("value")
    heads, half, _ = weights["row_embedding"].shape
    rows, columns = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    out = np.empty((x.shape[0], queries.shape[1], rows, columns))
    for n, head, i, j in product(range(x.shape[0]), range(heads), range(rows), range(columns)):
        channels = slice(head * 2 * half, (head + 1) * 2 * half)
        top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
        query = queries[
            n, channels, top + (kernel[0] - 1) // 2 * dilation[0], left + (kernel[1] - 1) // 2 * dilation[1]
        ]
        logits, neighbours = [], []
        for a, b in product(range(kernel[0]), range(kernel[1])):
            y, z = top + a * dilation[0], left + b * dilation[1]
            if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
                offset = [weights["row_embedding"][head, :, a], weights["column_embedding"][head, :, b]]
                logits.append(query @ keys[n, channels, y, z] + query @ np.concatenate(offset))
                neighbours.append(values[n, channels, y, z])
        powers = np.exp(np.array(logits) - max(logits))
        out[n, channels, i, j] = (powers / powers.sum()) @ np.array(neighbours)
    return out


def c_layer_norm(x: Array, weights: Weights, training: bool, *, each_channel: bool = False, eps: float = 1e-5) -> Array:
    """arXiv 1607.06450, eq. 3, over an image, or over each channel of it; no weights, no affine."""
    out = np.empty_like(x)
    for n, c in product(range(x.shape[0]), range(x.shape[1])):
        values = x[n, c] if each_channel else x[n]
        mean = values.sum() / values.size
        variance = ((values - mean) ** 2).sum() / values.size
        out[n, c] = (x[n, c] - mean) / math.sqrt(variance + eps)
        if weights:
            out[n, c] = out[n, c] * weights["weight"][c] + weights["bias"][c]
    return out


def rep_conv(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    branches: int = 1,
    kernel: _TWO = (3, 3),
    stride: int = 1,
    dilation: _TWO = (1, 1),
    groups: int = 1,
    border: str = "constant",
    activation: Callable[[Array], Array] = relu,
) -> Array:
    """arXiv 2101.03697, eq. 1 and 2, with several branches as in arXiv 2206.04040, section 3.2."""

    def branch(prefix: str, padding: _TWO, dilation: _TWO) -> Array:
        sides = [(0, 0), (0, 0), *((p, p) for p in padding)]
        padded = np.pad(x, sides, mode=border)
        bias = weights.get(f"{prefix}.0.bias")
        y = conv(padded, weights[f"{prefix}.0.weight"], bias, (stride,) * 2, (0, 0), dilation, groups)
        return batch_norm(y, weights, f"{prefix}.1", training) if f"{prefix}.1.weight" in weights else y

    padding = tuple(d * (k // 2) for k, d in zip(kernel, dilation, strict=True))
    total = sum(branch(f"convs.{i}", padding, dilation) for i in range(branches))
    if "pointwise.0.weight" in weights:
        total = total + branch("pointwise", (0, 0), (1, 1))
    if "identity.weight" in weights:
        total = total + batch_norm(x, weights, "identity", training)
    if "se.fc1.weight" in weights:
        total = squeeze_excitation(total, weights, training, prefix="se.")
    return activation(total)
