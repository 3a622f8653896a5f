"""Modules of torch: constructors, with the channels and sizes of their outputs."""

from dataclasses import dataclass
from typing import Any

from .choices import Choices
from .shapes import Sizes, smallest, windowed

__all__ = ["ACTIVATIONS", "Layer", "activation", "conv", "norm", "plain_conv", "pool", "small_layer"]


@dataclass(frozen=True)
class Layer:
    """An expression that creates a module, and what the module makes of the image that it was drawn for."""

    code: str
    channels: int
    sizes: Sizes


ACTIVATIONS = (
    *("nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU6()", "nn.Hardswish()", "nn.SiLU(inplace=True)", "nn.GELU()"),
    *("nn.LeakyReLU(0.1)", "nn.ELU()", "nn.Sigmoid()", "nn.Hardsigmoid()", "nn.Tanh()", "nn.Mish()", "nn.SiLU()"),
    *("nn.Hardtanh(-1, 1)", "nn.ReLU6(inplace=True)", "nn.Softplus()", "nn.PReLU()", "nn.Hardswish(inplace=True)"),
    *("nn.LeakyReLU(0.2, inplace=True)", "nn.GELU(approximate='tanh')", "nn.CELU()", "nn.SELU()", "nn.Softsign()"),
)


def activation(choices: Choices, channels: int, sizes: Sizes) -> Layer:
    return Layer(choices.pick_from(ACTIVATIONS), channels, sizes)


def plain_conv(choices: Choices, channels: int, sizes: Sizes, out_channels: int | None = None) -> Layer:
    """A convolution with a kernel of 1 or 3 that keeps the size."""
    out_channels = out_channels or choices.pick(channels, 8, 4)
    kernel = choices.pick(3, 1) if smallest(sizes) > 1 else 1
    bias = choices.pick("", ", bias=False")
    return Layer(f"nn.Conv2d({channels}, {out_channels}, {kernel}, padding={kernel // 2}{bias})", out_channels, sizes)


def conv(choices: Choices, channels: int, sizes: Sizes) -> Layer:
    """A convolution with any options."""
    small = smallest(sizes)
    kernel = choices.pick(
        *(k for k in (3, 1, 5, (1, 3), (3, 1), 2, 4) if max(k if isinstance(k, tuple) else (k,)) < small)
    )
    stride = choices.pick(1, 1, 2, (2, 1)) if small >= 8 else 1
    dilation = choices.pick(1, 1, 1, 2) if small >= 6 and kernel == 3 else 1
    half = tuple(dilation * (k // 2) for k in kernel) if isinstance(kernel, tuple) else dilation * (kernel // 2)
    paddings: list[Any] = [half, half, half]
    if small > dilation * 4 + 2:
        paddings.append(0)
    if stride == 1:
        paddings.append("same")
    padding = choices.pick_from(paddings)
    out_channels = choices.pick(channels, 8, 4, 12, 6, 5)
    groups = choices.pick(*(g for g in (1, 1, channels, 2) if channels % g == 0 and out_channels % g == 0))
    modes = ["zeros"] * 7 + ["reflect", "replicate", "circular"] if small > 4 else ["zeros"]
    options = {
        "stride": (stride, 1),
        "padding": (padding, 0),
        "dilation": (dilation, 1),
        "groups": (groups, 1),
        "bias": (choices.pick(True, False), True),
        "padding_mode": (choices.pick_from(modes), "zeros"),
    }
    text = "".join(f", {name}={value!r}" for name, (value, default) in options.items() if value != default)
    code = f"nn.Conv2d({channels}, {out_channels}, {kernel}{text})"
    if choices.happens(0.08):
        code = choices.pick(f"parametrizations.weight_norm({code})", f"parametrizations.spectral_norm({code})")
    return Layer(code, out_channels, windowed(sizes, kernel, stride, padding, dilation))


def norm(choices: Choices, channels: int, sizes: Sizes) -> Layer:
    groups = 2 if channels % 2 == 0 else 1
    return Layer(
        choices.pick(
            *[f"nn.BatchNorm2d({channels})"] * 5,
            f"nn.BatchNorm2d({channels}, eps=1e-3, momentum=0.01)",
            f"nn.BatchNorm2d({channels}, affine=False)",
            f"nn.BatchNorm2d({channels}, momentum=None)",
            f"nn.GroupNorm({groups}, {channels})",
            f"tnn.LayerNorm2d({channels})",
            f"torchvision.ops.FrozenBatchNorm2d({channels})",
            f"nn.InstanceNorm2d({channels}, affine=True)",
        ),
        channels,
        sizes,
    )


def pool(choices: Choices, channels: int, sizes: Sizes) -> Layer:
    if smallest(sizes) < 6:
        return Layer(choices.pick("nn.MaxPool2d(3, 1, 1)", "nn.AvgPool2d(3, 1, 1)"), channels, sizes)
    code, kernel, stride, padding = choices.pick(
        ("nn.MaxPool2d(2)", 2, 2, 0),
        ("nn.AvgPool2d(2)", 2, 2, 0),
        ("nn.MaxPool2d(3, 2, 1)", 3, 2, 1),
        ("nn.AvgPool2d(3, 2, 1)", 3, 2, 1),
        ("nn.AvgPool2d(3, 2, 1, count_include_pad=False)", 3, 2, 1),
        ("nn.MaxPool2d(3, 1, 1)", 3, 1, 1),
        ("nn.MaxPool2d((1, 2))", (1, 2), (1, 2), 0),
    )
    return Layer(code, channels, windowed(sizes, kernel, stride, padding))


def small_layer(choices: Choices, channels: int, sizes: Sizes) -> Layer:
    """A layer without a norm or a weight of its own, or with one for each channel."""
    doubled = tuple((2 * height, 2 * width) for height, width in sizes)
    padded = tuple((height + 2, width + 1) for height, width in sizes)
    options = [
        ("nn.Identity()", channels, sizes),
        ("nn.Dropout(0.2)", channels, sizes),
        ("nn.Dropout2d(0.1)", channels, sizes),
        ("tnn.StochasticDepth(0.2, 'row')", channels, sizes),
        ("nn.ZeroPad2d((1, 0, 1, 1))", channels, padded),
    ]
    if smallest(sizes) > 2:
        options.append(
            (choices.pick("nn.ReflectionPad2d((0, 1, 1, 1))", "nn.ReplicationPad2d((0, 1, 1, 1))"), channels, padded)
        )
    if max(map(max, sizes)) <= 16:
        options.append(
            (choices.pick("nn.Upsample(scale_factor=2)", "nn.UpsamplingNearest2d(scale_factor=2)"), channels, doubled)
        )
        options.append(("nn.Upsample(scale_factor=2, mode='bilinear')", channels, doubled))
        out_channels = choices.pick(channels, 8)
        options.append((f"nn.ConvTranspose2d({channels}, {out_channels}, 2, 2)", out_channels, doubled))
    if channels % 4 == 0:
        options.append(("nn.ChannelShuffle(2)", channels, sizes))
    return Layer(*choices.pick_from(options))
