"""The layers of vision transformers in NumPy and plain loops, in float64, from the equations of their papers."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np

from .reference import Array, Weights, gelu, linear, silu

__all__ = ["attention", "classifier_head", "encoder_block", "gated_mlp", "patch_embedding"]


def _under(weights: Weights, prefix: str) -> Weights:
    """The weights of a child, by its own keys."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _layer_norm(x: Array, weights: Weights, eps: float) -> Array:
    """Each vector along the last dimension, one at a time."""
    out = np.empty_like(x)
    for index in np.ndindex(*x.shape[:-1]):
        vector = x[index]
        out[index] = (vector - vector.mean()) / math.sqrt(((vector - vector.mean()) ** 2).mean() + eps)
        out[index] = out[index] * weights["weight"] + weights["bias"]
    return out


def _rms_norm(x: Array, weights: Weights, eps: float) -> Array:
    out = np.empty_like(x)
    for index in np.ndindex(*x.shape[:-1]):
        out[index] = x[index] / math.sqrt((x[index] ** 2).mean() + eps) * weights["weight"]
    return out


def _linear(x: Array, weights: Weights, prefix: str) -> Array:
    return linear(x, weights[f"{prefix}.weight"], weights.get(f"{prefix}.bias"))


def patch_embedding(
    x: Array, weights: Weights, training: bool, *, stride: int, padding: int = 0, norm: bool = False
) -> Array:
    """arXiv 2010.11929, eq. 1: each patch, flattened, times a matrix; rows of patches from top to bottom."""
    filters, bias = weights["proj.weight"], weights.get("proj.bias")
    side = filters.shape[2]
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    rows, columns = ((size - side) // stride + 1 for size in x.shape[2:])
    out = np.zeros((x.shape[0], rows, columns, filters.shape[0]))
    matrix = filters.reshape(filters.shape[0], -1)
    for n, i, j in product(range(x.shape[0]), range(rows), range(columns)):
        patch = x[n, :, i * stride : i * stride + side, j * stride : j * stride + side]
        out[n, i, j] = matrix @ patch.reshape(-1) + (0.0 if bias is None else bias)
    if norm:
        out = _layer_norm(out, _under(weights, "norm."), 1e-5)
    return out.reshape(x.shape[0], rows * columns, -1)


def attention(
    x: Array, weights: Weights, training: bool, *, heads: int, qk_norm: bool = False, causal: bool = False
) -> Array:
    """arXiv 1706.03762, eq. 1: one query of one head at a time."""
    tokens, channels = x.shape[1:]
    projected = _linear(x, weights, "in_proj")
    width = channels // heads
    out = np.empty_like(x)
    for n, head in product(range(x.shape[0]), range(heads)):
        query, key, value = (
            projected[n, :, part * channels + head * width : part * channels + (head + 1) * width] for part in range(3)
        )
        if qk_norm:
            query = _layer_norm(query, _under(weights, "q_norm."), 1e-5)
            key = _layer_norm(key, _under(weights, "k_norm."), 1e-5)
        for i in range(tokens):
            last = i + 1 if causal else tokens
            scores = np.array([query[i] @ key[j] / math.sqrt(width) for j in range(last)])
            powers = np.exp(scores - scores.max())
            out[n, i, head * width : (head + 1) * width] = (powers / powers.sum()) @ value[:last]
    return _linear(out, weights, "out_proj")


def gated_mlp(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    activation: Callable[[Array], Array] = silu,
    norm: bool = False,
) -> Array:
    """arXiv 2002.05202, eq. 6. The first half of the rows of the first matrix is W, the second V."""
    matrix, bias = weights["fc1.weight"], weights.get("fc1.bias")
    half = matrix.shape[0] // 2
    gate = linear(x, matrix[:half], None if bias is None else bias[:half])
    value = linear(x, matrix[half:], None if bias is None else bias[half:])
    hidden = activation(gate) * value
    if norm:
        hidden = _layer_norm(hidden, _under(weights, "norm."), 1e-5)
    return _linear(hidden, weights, "fc2")


def _plain_mlp(x: Array, weights: Weights, training: bool) -> Array:
    return _linear(gelu(_linear(x, weights, "0")), weights, "3")


def encoder_block(x: Array, weights: Weights, training: bool, *, heads: int, gated: bool = False) -> Array:
    """arXiv 2010.11929, eq. 2 and 3; with ``gated``, RMS norms, a gated MLP and layer scale."""

    def norm(x: Array, name: str) -> Array:
        child = _under(weights, f"{name}.")
        return _rms_norm(x, child, 1e-6) if gated else _layer_norm(x, child, 1e-6)

    def scale(branch: Array, name: str) -> Array:
        return branch * weights[f"{name}.weight"] if gated else branch

    branch = attention(norm(x, "ln_1"), _under(weights, "self_attention."), training, heads=heads)
    x = x + scale(branch, "layer_scale_1")
    mlp = gated_mlp if gated else _plain_mlp
    return x + scale(mlp(norm(x, "ln_2"), _under(weights, "mlp."), training), "layer_scale_2")


def classifier_head(x: Array, weights: Weights, training: bool, *, pools: bool = True, norm: bool = False) -> Array:
    if pools:
        vectors = np.zeros(x.shape[:2])
        for n, c in product(*map(range, x.shape[:2])):
            vectors[n, c] = x[n, c].sum() / x[n, c].size
        x = vectors
    if norm:
        x = _layer_norm(x, _under(weights, "norm."), 1e-5)
    return _linear(x, weights, "fc")
