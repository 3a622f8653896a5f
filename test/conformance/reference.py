"""Operators in NumPy and plain loops, in float64: the references of the layers.

Nothing here calls torch. Weights come as a dictionary of arrays with the keys of the layer's ``state_dict``.
"""

import math
from collections.abc import Callable, Mapping
from itertools import product

import numpy as np

Array = np.ndarray
Weights = Mapping[str, Array]


def conv(x: Array, weight: Array, bias: Array | None, stride: tuple, padding: tuple, dilation: tuple, groups: int):
    """Cross-correlation, one output pixel and one output channel at a time."""
    dims = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    kernel = weight.shape[2:]
    sizes = [(x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(dims)]
    out = np.zeros((x.shape[0], weight.shape[0], *sizes))
    in_group, out_group = weight.shape[1], weight.shape[0] // groups
    for channel in range(weight.shape[0]):
        first = channel // out_group * in_group
        for position in product(*map(range, sizes)):
            window = tuple(
                slice(p * s, p * s + d * (k - 1) + 1, d)
                for p, s, d, k in zip(position, stride, dilation, kernel, strict=True)
            )
            patch = x[(slice(None), slice(first, first + in_group), *window)]
            out[(slice(None), channel, *position)] = (patch * weight[channel]).reshape(x.shape[0], -1).sum(1)
        if bias is not None:
            out[:, channel] += bias[channel]
    return out


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    out = np.zeros((*x.shape[:-1], weight.shape[0]))
    for feature in range(weight.shape[0]):
        out[..., feature] = (x * weight[feature]).sum(-1) + (0.0 if bias is None else bias[feature])
    return out


def batch_norm(x: Array, weights: Weights, prefix: str, training: bool, eps: float = 1e-5) -> Array:
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        mean = x[:, c].mean() if training else weights[f"{prefix}.running_mean"][c]
        variance = ((x[:, c] - mean) ** 2).mean() if training else weights[f"{prefix}.running_var"][c]
        out[:, c] = (x[:, c] - mean) / np.sqrt(variance + eps)
        out[:, c] = out[:, c] * weights[f"{prefix}.weight"][c] + weights[f"{prefix}.bias"][c]
    return out


def group_norm(x: Array, weights: Weights, prefix: str, groups: int, eps: float = 1e-5) -> Array:
    out = np.empty_like(x)
    width = x.shape[1] // groups
    for n, g in product(range(x.shape[0]), range(groups)):
        block = x[n, g * width : (g + 1) * width]
        out[n, g * width : (g + 1) * width] = (block - block.mean()) / np.sqrt(block.var() + eps)
    for c in range(x.shape[1]):
        out[:, c] = out[:, c] * weights[f"{prefix}.weight"][c] + weights[f"{prefix}.bias"][c]
    return out


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def relu(x: Array) -> Array:
    return np.where(x > 0, x, 0.0)


def relu6(x: Array) -> Array:
    return np.minimum(relu(x), 6.0)


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def hard_sigmoid(x: Array) -> Array:
    return relu6(x + 3) / 6


def hard_swish(x: Array) -> Array:
    return x * hard_sigmoid(x)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def identity(x: Array) -> Array:
    return x


# Layers


def conv2d_same(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    prefix: str = "",
    stride: tuple = (1, 1),
    dilation: tuple = (1, 1),
    groups: int = 1,
) -> Array:
    """The padding as in the documentation of tf.nn: by the remainder of the size."""
    weight = weights[f"{prefix}weight"]
    borders = []
    for size, k, s, d in zip(x.shape[2:], weight.shape[2:], stride, dilation, strict=True):
        window = d * (k - 1) + 1
        total = max(window - s, 0) if size % s == 0 else max(window - size % s, 0)
        borders.append((total // 2, total - total // 2))
    x = np.pad(x, [(0, 0), (0, 0), *borders])
    return conv(x, weight, weights.get(f"{prefix}bias"), stride, (0, 0), dilation, groups)


def conv2d_same_norm_act(x: Array, weights: Weights, training: bool, *, stride: tuple, activation=relu) -> Array:
    x = conv2d_same(x, weights, training, prefix="0.", stride=stride)
    return activation(batch_norm(x, weights, "1", training))


def standardized(weight: Array, eps: float, scale: float = 1.0) -> Array:
    """Each filter less its mean, over its standard deviation."""
    filters = np.empty_like(weight)
    for o, raw in enumerate(weight):
        mean = raw.sum() / raw.size
        filters[o] = scale * (raw - mean) / math.sqrt(((raw - mean) ** 2).sum() / raw.size + eps)
    return filters


def standardized_conv(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    gamma: float | None = None,
    stride: tuple = (1, 1),
    padding: tuple = (0, 0),
    dilation: tuple = (1, 1),
    groups: int = 1,
    border: str = "constant",
    eps: float = 1e-10,
) -> Array:
    """arXiv 1903.10520, eq. 5 to 7; with ``gamma`` arXiv 2101.08692, eq. 4."""
    scale = 1.0 if gamma is None else gamma / math.sqrt(weights["weight"][0].size)
    filters = standardized(weights["weight"], eps, scale)
    if border != "constant":
        x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)], mode=border)
        padding = (0, 0)
    return conv(x, filters, weights.get("bias"), stride, padding, dilation, groups)


def frozen_batch_norm(x: Array, weights: Weights, training: bool) -> Array:
    return batch_norm(x, {f"n.{key}": value for key, value in weights.items()}, "n", training=False)


def layer_norm_2d(x: Array, weights: Weights, training: bool, *, eps: float = 1e-6) -> Array:
    out = np.empty_like(x)
    for n, h, w in product(range(x.shape[0]), range(x.shape[2]), range(x.shape[3])):
        pixel = x[n, :, h, w]
        out[n, :, h, w] = (pixel - pixel.mean()) / math.sqrt(pixel.var() + eps)
    for c in range(x.shape[1]):
        out[:, c] = out[:, c] * weights.get("weight", np.ones(x.shape[1]))[c] + weights.get("bias", np.zeros(9))[c]
    return out


def layer_scale(x: Array, weights: Weights, training: bool, *, axis: int = 1) -> Array:
    out = x.copy()
    for c, gamma in enumerate(weights["weight"]):
        index = [slice(None)] * x.ndim
        index[axis] = c
        out[tuple(index)] *= gamma
    return out


def permute(x: Array, weights: Weights, training: bool, *, dims: tuple[int, ...]) -> Array:
    out = np.empty([x.shape[d] for d in dims])
    for index in product(*map(range, x.shape)):
        out[tuple(index[d] for d in dims)] = x[index]
    return out


def mlp(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    linears: tuple[int, ...],
    norms: tuple[int, ...] = (),
    activation=relu,
) -> Array:
    for i in linears:
        x = linear(x, weights[f"{i}.weight"], weights.get(f"{i}.bias"))
        if i + 1 in norms:
            x = batch_norm(x, weights, f"{i + 1}", training)
        if i != linears[-1]:
            x = activation(x)
    return x


def depthwise_separable(
    x: Array, weights: Weights, training: bool, *, kernel_size: int = 3, stride: int = 1, activation=relu
) -> Array:
    groups = x.shape[1]
    options = {"kernel_size": kernel_size, "stride": stride, "groups": groups, "activation": activation}
    x = conv_norm_act(x, weights, training, prefix="depthwise.", **options)
    return conv_norm_act(x, weights, training, prefix="pointwise.", kernel_size=1, activation=activation)


def mbconv(
    x: Array, weights: Weights, training: bool, *, places: str, kernel_size: int = 3, stride: int = 1, activation=silu
) -> Array:
    """``places`` lists the parts of the block: expand, depthwise, full, squeeze, project."""
    branch = x
    for i, place in enumerate(places.split()):
        step = {"prefix": f"block.{i}.", "activation": activation}
        spatial = {"kernel_size": kernel_size, "stride": stride}
        if place == "squeeze":
            branch = squeeze_excitation(branch, weights, training, prefix=f"block.{i}.", activation=activation)
        elif place == "depthwise":
            branch = conv_norm_act(branch, weights, training, groups=branch.shape[1], **spatial, **step)
        elif place == "full":
            branch = conv_norm_act(branch, weights, training, **spatial, **step)
        elif place == "expand":
            branch = conv_norm_act(branch, weights, training, kernel_size=1, **step)
        else:
            branch = conv_norm_act(branch, weights, training, **(step | {"kernel_size": 1, "activation": identity}))
    return x + branch if branch.shape == x.shape else branch


def convnext_block(x: Array, weights: Weights, training: bool, *, activation=gelu) -> Array:
    kernel = weights["block.0.weight"].shape[-1]
    pad = (kernel // 2,) * 2

    def normalized(x: Array, name: str, eps: float) -> Array:
        affine = {"weight": weights[f"block.{name}.weight"], "bias": weights[f"block.{name}.bias"]}
        return layer_norm_2d(x, affine, training, eps=eps)

    branch = conv(x, weights["block.0.weight"], weights["block.0.bias"], (1, 1), pad, (1, 1), x.shape[1])
    branch = np.moveaxis(normalized(branch, "2", 1e-6), 1, -1)
    branch = activation(linear(branch, weights["block.3.weight"], weights["block.3.bias"]))
    last = 5
    if "block.6.weight" in weights:  # a second layer norm comes before the last linear layer
        branch = np.moveaxis(normalized(np.moveaxis(branch, -1, 1), "5", 1e-5), 1, -1)
        last = 6
    branch = linear(branch, weights[f"block.{last}.weight"], weights[f"block.{last}.bias"])
    return x + np.moveaxis(branch, -1, 1) * weights.get("layer_scale", 1.0)


def conv_norm_act(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    prefix: str = "",
    kernel_size: int | tuple = 3,
    stride: int | tuple = 1,
    padding: int | tuple | None = None,
    groups: int = 1,
    dilation: int | tuple = 1,
    norm: str = "batch",
    activation: Callable[[Array], Array] = relu,
) -> Array:
    dims = x.ndim - 2
    kernel, step, spacing = ((v,) * dims if isinstance(v, int) else v for v in (kernel_size, stride, dilation))
    if padding is None:
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, spacing, strict=True))
    elif isinstance(padding, int):
        padding = (padding,) * dims
    x = conv(x, weights[f"{prefix}0.weight"], weights.get(f"{prefix}0.bias"), step, padding, spacing, groups)
    if norm == "batch":
        x = batch_norm(x, weights, f"{prefix}1", training)
    elif norm.startswith("group"):
        x = group_norm(x, weights, f"{prefix}1", int(norm.removeprefix("group")))
    return activation(x)


def linear_dropout_act(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    norm: bool = False,
    activation: Callable[[Array], Array] = relu,
) -> Array:
    x = linear(x, weights["linear.weight"], weights.get("linear.bias"))
    if norm:
        x = batch_norm(x, weights, "norm", training)
    return activation(x)


def squeeze_excitation(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    prefix: str = "",
    activation: Callable[[Array], Array] = relu,
    scale_activation: Callable[[Array], Array] = sigmoid,
) -> Array:
    z = x.reshape(x.shape[0], x.shape[1], -1).mean(2)
    z = activation(linear(z, weights[f"{prefix}fc1.weight"][:, :, 0, 0], weights[f"{prefix}fc1.bias"]))
    z = scale_activation(linear(z, weights[f"{prefix}fc2.weight"][:, :, 0, 0], weights[f"{prefix}fc2.bias"]))
    return x * z[:, :, None, None]


def residual_block(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    strides: tuple[int, ...],
    groups: tuple[int, ...],
    dilation: int = 1,
    activation: Callable[[Array], Array] = relu,
) -> Array:
    """Both blocks: convolutions with the kernel sizes of the weights, the last without an activation."""
    branch = x
    for i, (stride, group) in enumerate(zip(strides, groups, strict=True), start=1):
        weight = weights[f"conv{i}.weight"]
        spacing = dilation if weight.shape[-1] > 1 else 1
        padding = spacing * (weight.shape[-1] - 1) // 2
        branch = conv(
            branch, weight, weights.get(f"conv{i}.bias"), (stride,) * 2, (padding,) * 2, (spacing,) * 2, group
        )
        if f"bn{i}.weight" in weights:
            branch = batch_norm(branch, weights, f"bn{i}", training)
        if i < len(strides):
            branch = activation(branch)
    if "se.fc1.weight" in weights:
        branch = squeeze_excitation(branch, weights, training, prefix="se.")
    skip = x
    if "downsample.0.weight" in weights:
        step = (max(strides),) * 2
        skip = conv(x, weights["downsample.0.weight"], weights.get("downsample.0.bias"), step, (0, 0), (1, 1), 1)
        if "downsample.1.weight" in weights:
            skip = batch_norm(skip, weights, "downsample.1", training)
    return activation(branch + skip)


def inverted_residual(
    x: Array,
    weights: Weights,
    training: bool,
    *,
    stride: int,
    expands: bool,
    has_skip: bool,
    has_se: bool = False,
    activation: Callable[[Array], Array] = relu6,
    scale_activation: Callable[[Array], Array] = sigmoid,
) -> Array:
    branch, place = x, 0
    if expands:
        branch = conv_norm_act(branch, weights, training, prefix="conv.0.", kernel_size=1, activation=activation)
        place += 1
    hidden = branch.shape[1]
    branch = conv_norm_act(
        branch,
        weights,
        training,
        prefix=f"conv.{place}.",
        kernel_size=weights[f"conv.{place}.0.weight"].shape[-1],
        stride=stride,
        groups=hidden,
        activation=activation,
    )
    place += 1
    if has_se:
        prefix = f"conv.{place}."
        branch = squeeze_excitation(branch, weights, training, prefix=prefix, scale_activation=scale_activation)
        place += 1
    branch = conv(branch, weights[f"conv.{place}.weight"], None, (1, 1), (0, 0), (1, 1), 1)
    branch = batch_norm(branch, weights, f"conv.{place + 1}", training)
    return x + branch if has_skip else branch


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
