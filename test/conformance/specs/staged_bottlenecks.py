"""Experimental blocks of mobile networks, and global response normalization."""

from functools import partial

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from .. import staged_bottleneck_reference as staged
from . import invalid_inputs, staged_shape_strategies

__all__ = ["SPECS"]


def _choice(name: str, value: object, error: type[Exception], message: str) -> BadArguments:
    return BadArguments(InvalidInput.CHOICE, {name: value}, error, message)


def _se_layer(channels: int) -> tuple[BadArguments, ...]:
    message = f"se_layer has input_channels=77, expected {channels}"
    return (
        *invalid_inputs.layers("activation_layer", "se_layer"),
        _choice("se_layer", tnn.SqueezeExcitation(77, 2), ValueError, message),
    )


_IMAGES = (
    *invalid_inputs.shapes(4, (7, 9)),
    *invalid_inputs.types_of_torch((2, 4, 7, 9)),
    *invalid_inputs.no_pixels(4),
)

SPECS = (
    LayerSpec(
        enn.RepConv,
        (
            Sample("repvgg", {"in_channels": 4, "out_channels": 4}, (2, 4, 7, 9), staged.rep_conv, reads_mode=True),
            Sample(
                "depthwise mobileone",
                {"in_channels": 4, "out_channels": 4, "kernel_size": 5, "groups": 4, "branches": 3}
                | {"activation_layer": nn.Hardswish, "se_layer": partial(tnn.SqueezeExcitation, squeeze_channels=2)},
                (2, 4, 6, 7),
                partial(staged.rep_conv, branches=3, kernel=(5, 5), groups=4, activation=ref.hard_swish),
                reads_mode=True,
            ),
            Sample(
                "strided without norm",
                {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 5), "stride": 2, "dilation": (2, 1)}
                | {"groups": 2, "padding_mode": "reflect", "norm_layer": None, "activation_layer": None},
                (2, 4, 9, 11),
                partial(
                    staged.rep_conv,
                    kernel=(3, 5),
                    stride=2,
                    dilation=(2, 1),
                    groups=2,
                    border="reflect",
                    activation=ref.identity,
                ),
                reads_mode=False,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "out_channels"),
            BadArguments(
                InvalidInput.GROUPS, {"groups": 3}, ValueError, "in_channels must be divisible by groups, got 4 and 3"
            ),
            BadArguments(InvalidInput.GROUPS, {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
            BadArguments(InvalidInput.GROUPS, {"groups": 2.0}, TypeError, r"groups must be an int, got 2\.0"),
            *invalid_inputs.numbers_each(2, "kernel_size", "dilation"),
            *invalid_inputs.numbers("stride", "branches"),
            BadArguments(InvalidInput.WINDOW, {"stride": (2, 1)}, TypeError, r"stride must be an int, got \(2, 1\)"),
            BadArguments(InvalidInput.EVEN_KERNEL, {"kernel_size": 4}, ValueError, "kernel_size must be odd.*got 4"),
            BadArguments(
                InvalidInput.EVEN_KERNEL, {"kernel_size": (3, 2)}, ValueError, r"kernel_size must be odd.*got \(3, 2\)"
            ),
            _choice("padding_mode", "mirror", ValueError, "padding_mode must be one of zeros.*got 'mirror'"),
            _choice("pointwise", 1, TypeError, "pointwise must be True or False, got 1"),
            _choice("identity", None, TypeError, "identity must be True or False, got None"),
            *invalid_inputs.norms(4),
            *_se_layer(4),
        ),
        _IMAGES,
        shape_strategy=staged_shape_strategies.rep_conv(),
    ),
    LayerSpec(
        enn.GlobalResponseNorm,
        (
            Sample(
                "channels last",
                {"dim": 5},
                (2, 7, 9, 5),
                staged.global_response_norm,
                reads_mode=False,
                dynamic_dims=(0, 1, 2),
                is_island=True,
            ),
            Sample(
                "channels first",
                {"dim": 4, "channels_dim": 1, "eps": 0.5},
                (2, 4, 6, 7),
                partial(staged.global_response_norm, axis=1, eps=0.5),
                reads_mode=False,
                is_island=True,
            ),
            Sample(
                "tokens",
                {"dim": 5},
                (2, 7, 5),
                staged.global_response_norm,
                reads_mode=False,
                dynamic_dims=(0, 1),
                is_island=True,
            ),
        ),
        (
            *invalid_inputs.channels("dim"),
            *invalid_inputs.eps(),
            _choice("channels_dim", 0, ValueError, "channels_dim must be 1 or -1, got 0"),
            _choice("channels_dim", 2, ValueError, "channels_dim must be 1 or -1, got 2"),
            _choice("channels_dim", "last", TypeError, "channels_dim must be an int, got 'last'"),
        ),
        (
            BadInput(InvalidInput.RANK, (2, 5), ValueError, r"input must have at least 3 dimensions, got 2: shape"),
            BadInput(InvalidInput.WIDTH, (2, 7, 9, 4), ValueError, r"size 5 in dimension -1, got shape \[2, 7, 9, 4\]"),
            BadInput(
                InvalidInput.WIDTH,
                (2, 4, 9, 5),
                ValueError,
                r"size 5 in dimension 1, got shape \[2, 4, 9, 5\]",
                {"channels_dim": 1},
            ),
            *invalid_inputs.no_tensors(),
            *invalid_inputs.types((2, 7, 9, 5)),
        ),
        shape_strategy=staged_shape_strategies.global_response_norm(),
    ),
    LayerSpec(
        enn.UniversalInvertedBottleneck,
        (
            Sample(
                "extra depthwise",
                {"in_channels": 4, "out_channels": 4, "start_kernel_size": 3, "middle_kernel_size": 5}
                | {"expand_ratio": 2},
                (2, 4, 7, 9),
                staged.universal_inverted_bottleneck,
                reads_mode=True,
            ),
            Sample(
                "inverted bottleneck",
                {"in_channels": 4, "out_channels": 5, "start_kernel_size": None, "middle_kernel_size": 3, "stride": 2}
                | {"se_layer": partial(tnn.SqueezeExcitation, squeeze_channels=3), "activation_layer": nn.Hardswish},
                (2, 4, 6, 7),
                partial(staged.universal_inverted_bottleneck, stride=2, activation=ref.hard_swish),
                reads_mode=True,
            ),
            Sample(
                "convnext-like",
                {"in_channels": 4, "out_channels": 5, "start_kernel_size": 5, "middle_kernel_size": None, "stride": 2}
                | {"layer_scale": 0.5, "expand_ratio": 1.5},
                (2, 4, 9, 7),
                partial(staged.universal_inverted_bottleneck, stride=2),
                reads_mode=True,
                islands=(tnn.LayerScale,),
            ),
            Sample(
                "feed-forward",
                {"in_channels": 3, "out_channels": 3, "start_kernel_size": None, "middle_kernel_size": None}
                | {"stochastic_depth": 0.2},
                (2, 3, 6, 7),
                staged.universal_inverted_bottleneck,
                is_random=True,
                reads_mode=True,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "out_channels"),
            *invalid_inputs.numbers("start_kernel_size", "middle_kernel_size"),
            BadArguments(
                InvalidInput.WINDOW, {"start_kernel_size": 4}, ValueError, "start_kernel_size must be odd, got 4"
            ),
            BadArguments(
                InvalidInput.WINDOW,
                {"middle_kernel_size": (3, 3)},
                TypeError,
                r"middle_kernel_size must be an int, got \(3, 3\)",
            ),
            BadArguments(InvalidInput.WINDOW, {"stride": 0}, ValueError, "stride must be 1 or 2, got 0"),
            BadArguments(InvalidInput.WINDOW, {"stride": 3}, ValueError, "stride must be 1 or 2, got 3"),
            BadArguments(
                InvalidInput.WINDOW,
                {"stride": 2, "start_kernel_size": None, "middle_kernel_size": None},
                ValueError,
                "stride must be 1 without a depthwise convolution, got 2",
            ),
            *(
                BadArguments(
                    InvalidInput.CHANNELS,
                    {"expand_ratio": ratio},
                    ValueError,
                    f"expand_ratio must leave at least one channel, got {ratio} for in_channels=",
                )
                for ratio in (0, -1, 0.1, invalid_inputs.NAN)
            ),
            BadArguments(
                InvalidInput.CHANNELS, {"expand_ratio": "6"}, TypeError, "expand_ratio must be a number, got '6'"
            ),
            BadArguments(
                InvalidInput.EPS, {"layer_scale": invalid_inputs.NAN}, ValueError, "layer_scale must be finite, got nan"
            ),
            BadArguments(
                InvalidInput.EPS, {"layer_scale": "small"}, TypeError, "layer_scale must be a number, got 'small'"
            ),
            *invalid_inputs.stochastic_depth(),
            *invalid_inputs.norms(4),
            *invalid_inputs.layers("conv_layer"),
            *_se_layer(8),
        ),
        (
            *_IMAGES,
            *invalid_inputs.kept_rows(4),
            # One pixel remains, which would broadcast.
            BadInput(
                InvalidInput.RESIDUAL,
                (2, 4, 7, 7),
                ValueError,
                r"conv_layer must have the shape of the input \[2, 4, 7, 7\], got \[2, 4, 1, 1\]",
                {"conv_layer": invalid_inputs.unpadded},
            ),
        ),
        shape_strategy=staged_shape_strategies.universal_inverted_bottleneck(),
    ),
)
