"""Experimental blocks of mobile networks."""

from functools import partial

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from .. import staged_reference as staged
from . import invalid_inputs, staged_shape_strategies

__all__ = ["SPECS"]

SPECS = (
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
        shape_strategy=staged_shape_strategies.universal_inverted_bottleneck(),
    ),
)
