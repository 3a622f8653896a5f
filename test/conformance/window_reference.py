"""The layers of Swin Transformers and position embeddings in NumPy and plain loops, from the equations of the papers."""

import math
from itertools import product

import numpy as np

from .reference import Array, Weights, gelu, linear, sigmoid

__all__ = ["patch_merging", "position_embedding", "sine_position_embedding", "swin_block", "window_attention"]

_TWO = tuple[int, int]


def _layer_norm(x: Array, weights: Weights, prefix: str) -> Array:
    """Over the last dimension."""
    centred = x - x.sum(-1, keepdims=True) / x.shape[-1]
    deviation = np.sqrt((centred**2).sum(-1, keepdims=True) / x.shape[-1] + 1e-5)
    return centred / deviation * weights[f"{prefix}weight"] + weights[f"{prefix}bias"]


def patch_merging(x: Array, weights: Weights, training: bool, *, version: int = 1) -> Array:
    """arXiv 2103.14030, section 3.1: squares of 2×2 pixels, column by column."""
    batch, channels, height, width = x.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    squares = np.zeros((batch, rows, columns, 4 * channels))
    for row, column, down, right in product(range(rows), range(columns), (0, 1), (0, 1)):
        if 2 * row + down < height and 2 * column + right < width:
            start = (2 * right + down) * channels
            squares[:, row, column, start : start + channels] = x[:, :, 2 * row + down, 2 * column + right]
    if version == 1:
        pixels = linear(_layer_norm(squares, weights, "norm."), weights["linear.weight"], None)
    else:
        pixels = _layer_norm(linear(squares, weights["linear.weight"], None), weights, "norm.")
    return np.moveaxis(pixels, -1, 1)


def _bias(weights: Weights, prefix: str, window: _TWO, offset: _TWO, version: int) -> Array:
    """The bias of one relative position, for each head; arXiv 2111.09883, eq. 3 and 4, in version 2."""
    if version == 1:
        row = (offset[0] + window[0] - 1) * (2 * window[1] - 1) + offset[1] + window[1] - 1
        return weights[f"{prefix}relative_position_bias_table"][row]
    spaced = []
    for distance, size in zip(offset, window, strict=True):
        relative = 8 * distance / max(1, size - 1)
        spaced.append(math.copysign(math.log2(1 + abs(relative)) / math.log2(8), relative))
    # The layer keeps the table in float32.
    table = weights[f"{prefix}relative_coords_table"][0, offset[0] + window[0] - 1, offset[1] + window[1] - 1]
    np.testing.assert_allclose(table, spaced, rtol=1e-6)
    hidden = weights[f"{prefix}cpb_mlp.0.weight"] @ table + weights[f"{prefix}cpb_mlp.0.bias"]
    return 16 * sigmoid(weights[f"{prefix}cpb_mlp.2.weight"] @ np.maximum(hidden, 0))


def window_attention(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    heads: int,
    window: _TWO,
    shift: _TWO = (0, 0),
    version: int = 1,
    prefix: str = "",
) -> Array:
    """arXiv 2103.14030, eq. 4 and figure 4: each pixel attends to those of its window on its side of the border."""
    batch, channels, height, width = x.shape
    padded = tuple(math.ceil(size / w) * w for size, w in zip((height, width), window, strict=True))
    shift = tuple(s if size > w else 0 for s, size, w in zip(shift, padded, window, strict=True))
    pixels = np.zeros((batch, *padded, channels))
    pixels[:, :height, :width] = np.moveaxis(x, 1, -1)
    bias = weights.get(f"{prefix}qkv.bias")
    if version == 2 and bias is not None:
        bias = np.concatenate([bias[:channels], np.zeros(channels), bias[2 * channels :]])
    qkv = linear(pixels, weights[f"{prefix}qkv.weight"], bias)
    query, key, value = (qkv[..., i * channels : (i + 1) * channels] for i in range(3))

    def place(i: int, j: int) -> tuple[tuple[int, int, bool, bool], _TWO]:
        """The window of a pixel with the sides of the border, and the position in the window."""
        moved = [(p - s) % size for p, s, size in zip((i, j), shift, padded, strict=True)]
        side = (moved[0] // window[0], moved[1] // window[1], i < shift[0], j < shift[1])
        return side, (moved[0] % window[0], moved[1] % window[1])

    out = np.zeros_like(pixels)
    depth = channels // heads
    everywhere = list(product(range(padded[0]), range(padded[1])))
    for i, j in product(range(height), range(width)):
        side, position = place(i, j)
        seen = [pixel for pixel in everywhere if place(*pixel)[0] == side]
        offsets = [(position[0] - place(*pixel)[1][0], position[1] - place(*pixel)[1][1]) for pixel in seen]
        biases = [_bias(weights, prefix, window, offset, version) for offset in offsets]
        for n, head in product(range(batch), range(heads)):
            part = slice(head * depth, (head + 1) * depth)
            q, keys = query[n, i, j, part], np.array([key[(n, *pixel)][part] for pixel in seen])
            if version == 1:
                logits = keys @ q / math.sqrt(depth)
            else:
                norms = np.linalg.norm(keys, axis=1) * np.linalg.norm(q)
                cosines = keys @ q / np.maximum(norms, 1e-12)  # keys of padding are zero
                logits = cosines * min(math.exp(weights[f"{prefix}logit_scale"][head, 0, 0]), 100)
            powers = np.exp(logits + np.array([b[head] for b in biases]))
            values = np.array([value[(n, *pixel)][part] for pixel in seen])
            out[n, i, j, part] = powers / powers.sum() @ values
    out = linear(out, weights[f"{prefix}proj.weight"], weights.get(f"{prefix}proj.bias"))
    return np.moveaxis(out[:, :height, :width], -1, 1)


def swin_block(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    heads: int,
    window: _TWO,
    shift: _TWO = (0, 0),
    version: int = 1,
    activation=gelu,
) -> Array:
    """arXiv 2103.14030, eq. 3; version 2: arXiv 2111.09883, figure 1."""

    def attention(pixels: Array) -> Array:
        options = {"heads": heads, "window": window, "shift": shift, "version": version, "prefix": "attn."}
        return np.moveaxis(window_attention(np.moveaxis(pixels, -1, 1), weights, training, **options), 1, -1)

    def perceptron(pixels: Array) -> Array:
        hidden = activation(linear(pixels, weights["mlp.0.weight"], weights["mlp.0.bias"]))
        return linear(hidden, weights["mlp.3.weight"], weights["mlp.3.bias"])

    pixels = np.moveaxis(x, 1, -1)
    for norm, branch in (("norm1.", attention), ("norm2.", perceptron)):
        if version == 1:
            pixels = pixels + branch(_layer_norm(pixels, weights, norm))
        else:
            pixels = pixels + _layer_norm(branch(pixels), weights, norm)
    return np.moveaxis(pixels, -1, 1)


def _cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    t = abs(distance)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def position_embedding(x: Array, weights: Weights, training: bool) -> Array:
    """arXiv 2010.11929, eq. 1, with an embedding resampled between the centres of pixels, the border repeated."""
    grid = weights["weight"][0]
    _, rows, columns = grid.shape
    out = x.copy()
    for i, j in product(range(x.shape[2]), range(x.shape[3])):
        y, z = (i + 0.5) * rows / x.shape[2] - 0.5, (j + 0.5) * columns / x.shape[3] - 0.5
        for a, b in product(range(math.floor(y) - 1, math.floor(y) + 3), range(math.floor(z) - 1, math.floor(z) + 3)):
            nearest = grid[:, min(max(a, 0), rows - 1), min(max(b, 0), columns - 1)]
            out[:, :, i, j] += _cubic(y - a) * _cubic(z - b) * nearest
    return out


def sine_position_embedding(
    x: Array, weights: Weights, training: bool, *, temperature: float = 10000.0, normalize: bool = True
) -> Array:
    """arXiv 2005.12872, appendix A.4, and arXiv 1706.03762, section 3.5."""
    _, channels, height, width = x.shape
    half = channels // 2
    out = x.copy()
    for i, j, k in product(range(height), range(width), range(half // 2)):
        for start, position, last in ((0, i + 1, height), (half, j + 1, width)):
            p = 2 * math.pi * position / (last + 1e-6) if normalize else position
            angle = p / temperature ** (2 * k / half)
            out[:, start + 2 * k, i, j] += math.sin(angle)
            out[:, start + 2 * k + 1, i, j] += math.cos(angle)
    return out
