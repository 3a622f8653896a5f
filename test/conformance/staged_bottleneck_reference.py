"""RepConv, the blocks of MobileNetV4 and global response normalization in NumPy and plain loops, in float64."""

import math
from collections.abc import Callable

import numpy as np

from .reference import Array, Weights, batch_norm, conv, identity, relu, squeeze_excitation

__all__ = ["global_response_norm", "rep_conv", "universal_inverted_bottleneck"]

_TWO = tuple[int, int]


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


def global_response_norm(x: Array, weights: Weights, training: bool, *, axis: int = -1, eps: float = 1e-6) -> Array:
    """arXiv 2301.00808, eq. 1 to 3 with the residual of algorithm 1."""
    x = np.moveaxis(x, axis, 1)
    out = np.empty_like(x)
    for image, y in zip(x, out, strict=True):
        responses = [math.sqrt((channel**2).sum()) for channel in image]
        mean = sum(responses) / len(responses)
        for c, response in enumerate(responses):
            normalized = image[c] * response / (mean + eps)
            y[c] = weights["weight"][c] * normalized + weights["bias"][c] + image[c]
    return np.moveaxis(out, 1, axis)


def universal_inverted_bottleneck(
    x: Array, weights: Weights, training: bool, *, stride: int = 1, activation: Callable[[Array], Array] = relu
) -> Array:
    """arXiv 2404.10518, section 3: the convolutions that have weights, each with batch norm."""
    branch = x
    has_middle = "block.middle.0.weight" in weights
    for name in ("start", "expand", "middle", "se", "project"):
        prefix = f"block.{name}"
        if f"{prefix}.fc1.weight" in weights:
            branch = squeeze_excitation(branch, weights, training, prefix=f"{prefix}.")
        if f"{prefix}.0.weight" not in weights:
            continue
        weight = weights[f"{prefix}.0.weight"]
        is_depthwise = name in ("start", "middle")
        step = stride if name == ("middle" if has_middle else "start") else 1
        padding = weight.shape[-1] // 2
        branch = conv(
            branch,
            weight,
            weights.get(f"{prefix}.0.bias"),
            (step,) * 2,
            (padding,) * 2,
            (1, 1),
            branch.shape[1] if is_depthwise else 1,
        )
        branch = batch_norm(branch, weights, f"{prefix}.1", training)
        branch = (activation if name in ("expand", "middle") else identity)(branch)
    if "block.scale.weight" in weights:
        branch = branch * weights["block.scale.weight"][:, None, None]
    return x + branch if branch.shape == x.shape else branch
