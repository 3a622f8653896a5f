"""The blocks of MobileNet and EfficientNet."""

from functools import partial

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from . import invalid_inputs, shape_strategies

__all__ = ["SPECS"]


def _arguments(in_name: str, out_name: str, channels: int) -> tuple[BadArguments, ...]:
    """Bad arguments of all blocks with a skip. The first norm has ``channels`` channels."""
    return (
        *invalid_inputs.channels(in_name, out_name),
        *invalid_inputs.numbers("kernel_size"),
        BadArguments(InvalidInput.WINDOW, {"stride": 0}, ValueError, "stride must be 1 or 2, got 0"),
        BadArguments(InvalidInput.WINDOW, {"stride": 3}, ValueError, "stride must be 1 or 2, got 3"),
        BadArguments(InvalidInput.WINDOW, {"stride": (1, 1)}, ValueError, r"stride must be 1 or 2, got \(1, 1\)"),
        BadArguments(InvalidInput.WINDOW, {"stride": 1.0}, TypeError, r"stride must be an int, got 1\.0"),
        BadArguments(InvalidInput.EVEN_KERNEL, {"kernel_size": 4}, ValueError, "kernel_size must be odd, got 4"),
        *(
            BadArguments(
                InvalidInput.CHANNELS,
                {"expand_ratio": ratio},
                ValueError,
                f"expand_ratio must leave at least one channel, got {ratio} for {in_name}=",
            )
            for ratio in (0, -1, 0.1, invalid_inputs.NAN, float("inf"))
        ),
        BadArguments(InvalidInput.CHANNELS, {"expand_ratio": "6"}, TypeError, "expand_ratio must be a number, got '6'"),
        BadArguments(
            InvalidInput.CHANNELS, {"expand_ratio": True}, TypeError, "expand_ratio must be a number, got True"
        ),
        *invalid_inputs.stochastic_depth(),
        *invalid_inputs.norms(channels),
        *invalid_inputs.layers("activation_layer", "conv_layer"),
    )


def _inputs(channels: int) -> tuple[BadInput, ...]:
    return (
        *invalid_inputs.shapes(channels, (6, 7)),
        *invalid_inputs.types_of_torch((2, channels, 6, 7)),
        *invalid_inputs.no_pixels(channels),
        *invalid_inputs.kept_rows(channels),
        # One pixel remains, which would broadcast.
        BadInput(
            InvalidInput.RESIDUAL,
            (2, channels, 3, 3),
            ValueError,
            rf"conv_layer must have the shape of the input \[2, {channels}, 3, 3\], got \[2, {channels}, 1, 1\]",
            {"conv_layer": invalid_inputs.unpadded},
        ),
    )


SPECS = (
    LayerSpec(
        tnn.InvertedResidual,
        (
            Sample(
                "skip",
                {"inp": 3, "oup": 3, "stride": 1, "expand_ratio": 4},
                (2, 3, 6, 7),
                partial(ref.inverted_residual, stride=1, expands=True, has_skip=True),
                reads_mode=True,
            ),
            Sample(
                "first of a stage",
                {"inp": 4, "oup": 5, "stride": 2, "expand_ratio": 1, "kernel_size": 5},
                (2, 4, 9, 7),
                partial(ref.inverted_residual, stride=2, expands=False, has_skip=False),
                reads_mode=True,
            ),
            Sample(
                "mobilenet v3",
                {"inp": 4, "oup": 4, "stride": 1, "expand_ratio": 2, "activation_layer": nn.Hardswish, "kernel_size": 5}
                | {"se_layer": partial(tnn.SqueezeExcitation, scale_activation=nn.Hardsigmoid)},
                (2, 4, 6, 7),
                partial(
                    ref.inverted_residual,
                    stride=1,
                    expands=True,
                    has_skip=True,
                    has_se=True,
                    activation=ref.hard_swish,
                    scale_activation=ref.hard_sigmoid,
                ),
                reads_mode=True,
            ),
            Sample(
                "squeeze silu",
                {"inp": 3, "oup": 3, "stride": 1, "expand_ratio": 2.5, "se_layer": tnn.SqueezeExcitation}
                | {"activation_layer": nn.SiLU, "stochastic_depth": 0.2},
                (2, 3, 6, 7),
                partial(ref.inverted_residual, stride=1, expands=True, has_skip=True, has_se=True, activation=ref.silu),
                is_random=True,
                reads_mode=True,
                islands=(nn.SiLU,),
            ),
        ),
        (
            *_arguments("inp", "oup", 3),
            *invalid_inputs.numbers_each(2, "dilation"),
            *invalid_inputs.layers("se_layer"),
            BadArguments(
                InvalidInput.CHOICE,
                {"se_layer": tnn.SqueezeExcitation(4, 2)},
                ValueError,
                "se_layer has input_channels=4, expected 12",
            ),
        ),
        _inputs(3),
        quantized.QuantizableInvertedResidual,
        shape_strategies.inverted("inp", "oup", dilates=True, squeezes=True),
    ),
    LayerSpec(
        tnn.MBConv,
        (
            Sample(
                "skip relu",
                {"in_channels": 4, "out_channels": 4, "activation_layer": nn.ReLU, "expand_ratio": 2},
                (2, 4, 6, 7),
                partial(ref.mbconv, places="expand depthwise squeeze project", activation=ref.relu),
                reads_mode=True,
            ),
            Sample(
                "first of a stage",
                {"in_channels": 4, "out_channels": 5, "kernel_size": 5, "stride": 2, "expand_ratio": 1},
                (2, 4, 9, 7),
                partial(ref.mbconv, places="depthwise squeeze project", kernel_size=5, stride=2),
                reads_mode=True,
                islands=(nn.SiLU,),
            ),
            Sample(
                "stochastic depth",
                {"in_channels": 3, "out_channels": 3, "stochastic_depth": 0.3, "se_layer": None}
                | {"activation_layer": nn.ReLU},
                (2, 3, 6, 7),
                partial(ref.mbconv, places="expand depthwise project", activation=ref.relu),
                is_random=True,
                reads_mode=True,
            ),
        ),
        (
            *_arguments("in_channels", "out_channels", 8),
            *invalid_inputs.layers("se_layer"),
            BadArguments(
                InvalidInput.CHOICE,
                {"se_layer": tnn.SqueezeExcitation(4, 2)},
                ValueError,
                "se_layer has input_channels=4, expected 8",
            ),
        ),
        _inputs(4),
        quantized.QuantizableMBConv,
        shape_strategies.inverted("in_channels", "out_channels", squeezes=True),
    ),
    LayerSpec(
        tnn.FusedMBConv,
        (
            Sample(
                "skip relu",
                {"in_channels": 3, "out_channels": 3, "activation_layer": nn.ReLU},
                (2, 3, 6, 7),
                partial(ref.mbconv, places="full project", activation=ref.relu),
                reads_mode=True,
            ),
            Sample(
                "one convolution",
                {"in_channels": 3, "out_channels": 5, "stride": 2, "expand_ratio": 1},
                (2, 3, 9, 7),
                partial(ref.mbconv, places="full", stride=2),
                reads_mode=True,
                islands=(nn.SiLU,),
            ),
        ),
        _arguments("in_channels", "out_channels", 12),
        _inputs(3),
        quantized.QuantizableFusedMBConv,
        shape_strategies.inverted("in_channels", "out_channels"),
    ),
    LayerSpec(
        tnn.DepthwiseSeparableConv,
        (
            Sample(
                "default", {"in_channels": 3, "out_channels": 5}, (2, 3, 6, 7), ref.depthwise_separable, reads_mode=True
            ),
            Sample(
                "multiplier relu6",
                {"in_channels": 3, "out_channels": 4, "kernel_size": 5, "stride": 2, "depth_multiplier": 2}
                | {"activation_layer": nn.ReLU6},
                (2, 3, 9, 7),
                partial(ref.depthwise_separable, kernel_size=5, stride=2, activation=ref.relu6),
                reads_mode=True,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "out_channels", "depth_multiplier"),
            *invalid_inputs.numbers_each(2, "kernel_size", "stride", "dilation"),
            BadArguments(
                InvalidInput.EVEN_KERNEL,
                {"kernel_size": 2},
                ValueError,
                "kernel_size must be odd if padding=None.*got 2",
            ),
            BadArguments(InvalidInput.CHOICE, {"padding": "full"}, ValueError, "Invalid padding string 'full'"),
            *invalid_inputs.norms(3),
            *invalid_inputs.layers("activation_layer"),
        ),
        (*invalid_inputs.shapes(3, (6, 7)), *invalid_inputs.types_of_torch((2, 3, 6, 7)), *invalid_inputs.no_pixels(3)),
        quantized.QuantizableDepthwiseSeparableConv,
        shape_strategies.depthwise_separable(),
    ),
    LayerSpec(
        tnn.UniversalInvertedBottleneck,
        (
            Sample(
                "extra depthwise",
                {"in_channels": 4, "out_channels": 4, "start_kernel_size": 3, "middle_kernel_size": 5}
                | {"expand_ratio": 2},
                (2, 4, 7, 9),
                ref.universal_inverted_bottleneck,
                reads_mode=True,
            ),
            Sample(
                "inverted bottleneck",
                {"in_channels": 4, "out_channels": 5, "start_kernel_size": None, "middle_kernel_size": 3, "stride": 2}
                | {"se_layer": partial(tnn.SqueezeExcitation, squeeze_channels=3), "activation_layer": nn.Hardswish},
                (2, 4, 6, 7),
                partial(ref.universal_inverted_bottleneck, stride=2, activation=ref.hard_swish),
                reads_mode=True,
            ),
            Sample(
                "convnext-like",
                {"in_channels": 4, "out_channels": 5, "start_kernel_size": 5, "middle_kernel_size": None, "stride": 2}
                | {"layer_scale": 0.5, "expand_ratio": 1.5},
                (2, 4, 9, 7),
                partial(ref.universal_inverted_bottleneck, stride=2),
                reads_mode=True,
                islands=(tnn.LayerScale,),
            ),
            Sample(
                "feed-forward",
                {"in_channels": 3, "out_channels": 3, "start_kernel_size": None, "middle_kernel_size": None}
                | {"stochastic_depth": 0.2},
                (2, 3, 6, 7),
                ref.universal_inverted_bottleneck,
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
            *invalid_inputs.layers("activation_layer", "se_layer"),
            BadArguments(
                InvalidInput.CHOICE,
                {"se_layer": tnn.SqueezeExcitation(77, 2)},
                ValueError,
                "se_layer has input_channels=77, expected 8",
            ),
        ),
        (
            *invalid_inputs.shapes(4, (7, 9)),
            *invalid_inputs.types_of_torch((2, 4, 7, 9)),
            *invalid_inputs.no_pixels(4),
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
        shape_strategy=shape_strategies.universal_inverted_bottleneck(),
    ),
)
