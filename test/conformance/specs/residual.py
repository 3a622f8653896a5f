"""The two blocks of residual networks."""

from functools import partial

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from . import invalid_inputs, shape_strategies

__all__ = ["SPECS"]


def _arguments(channels: int) -> tuple[BadArguments, ...]:
    """Bad arguments of both blocks. The first norm has ``channels`` channels."""
    return (
        *invalid_inputs.channels("inplanes", "planes"),
        *invalid_inputs.numbers("stride", "dilation"),
        BadArguments(InvalidInput.WINDOW, {"stride": (2, 2)}, TypeError, r"stride must be an int, got \(2, 2\)"),
        BadArguments(InvalidInput.GROUPS, {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        *invalid_inputs.stochastic_depth(),
        *invalid_inputs.norms(channels),
        *invalid_inputs.layers("activation_layer", "se_layer", "conv_layer"),
        BadArguments(
            InvalidInput.CHOICE, {"downsample": "conv"}, TypeError, "downsample must be a module or None, got 'conv'"
        ),
        BadArguments(
            InvalidInput.CHOICE, {"downsample": nn.Conv2d}, TypeError, "downsample must be a module or None, got <class"
        ),
    )


def _inputs(channels: int, out_channels: int, side: int) -> tuple[BadInput, ...]:
    """Invalid inputs of both; unpadded convolutions reduce an image with this ``side`` to one pixel."""
    shape = (2, channels, side, side)
    wanted = rf"the output of downsample must have the shape of the branch \[2, {out_channels}, {side}, {side}\], got "
    return (
        *invalid_inputs.shapes(channels, (6, 7)),
        *invalid_inputs.types_of_torch((2, channels, 6, 7)),
        *invalid_inputs.no_pixels(channels),
        *invalid_inputs.kept_rows(channels),
        # One channel, or one pixel, would broadcast.
        BadInput(
            InvalidInput.RESIDUAL,
            shape,
            ValueError,
            wanted + rf"\[2, 1, {side}, {side}\]",
            {"downsample": nn.Conv2d(channels, 1, 1)},
        ),
        BadInput(
            InvalidInput.RESIDUAL,
            shape,
            ValueError,
            wanted + rf"\[2, {out_channels}, 1, 1\]",
            {"downsample": nn.Conv2d(channels, out_channels, 1, stride=side)},
        ),
        BadInput(
            InvalidInput.RESIDUAL,
            shape,
            ValueError,
            rf"conv_layer must have the shape of the input \[2, {channels}, {side}, {side}\], got .* 1, 1\]",
            {"conv_layer": invalid_inputs.unpadded},
        ),
    )


SPECS = (
    LayerSpec(
        tnn.BasicBlock,
        (
            Sample(
                "identity",
                {"inplanes": 3, "planes": 3},
                (2, 3, 6, 7),
                partial(ref.residual_block, strides=(1, 1), groups=(1, 1)),
                reads_mode=True,
            ),
            Sample(
                "projection",
                {"inplanes": 3, "planes": 5, "stride": 2, "se_layer": tnn.SqueezeExcitation},
                (2, 3, 9, 7),
                partial(ref.residual_block, strides=(2, 1), groups=(1, 1)),
                reads_mode=True,
            ),
            Sample(
                "without norm",
                {"inplanes": 3, "planes": 5, "norm_layer": nn.Identity, "activation_layer": nn.SiLU, "dilation": 2},
                (2, 3, 9, 7),
                partial(ref.residual_block, strides=(1, 1), groups=(1, 1), dilation=2, activation=ref.silu),
                reads_mode=False,
                islands=(nn.SiLU,),
            ),
            Sample(
                "stochastic depth",
                {"inplanes": 3, "planes": 3, "stochastic_depth": 0.4},
                (2, 3, 6, 7),
                partial(ref.residual_block, strides=(1, 1), groups=(1, 1)),
                is_random=True,
                reads_mode=True,
            ),
        ),
        (
            *_arguments(3),
            BadArguments(
                InvalidInput.GROUPS,
                {"groups": 2},
                ValueError,
                "groups and base_width must be 1 and 64 in BasicBlock, got 2 and 64",
            ),
            BadArguments(
                InvalidInput.CHANNELS,
                {"base_width": 32},
                ValueError,
                "groups and base_width must be 1 and 64 in BasicBlock, got 1 and 32",
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"se_layer": tnn.SqueezeExcitation(4, 2)},
                ValueError,
                "se_layer has input_channels=4, expected 3",
            ),
        ),
        _inputs(3, 3, side=5),
        quantized.QuantizableBasicBlock,
        shape_strategies.basic_block(),
    ),
    LayerSpec(
        tnn.Bottleneck,
        (
            Sample(
                "identity",
                {"inplanes": 8, "planes": 2},
                (2, 8, 6, 7),
                partial(ref.residual_block, strides=(1, 1, 1), groups=(1, 1, 1)),
                reads_mode=True,
            ),
            Sample(
                "resnext projection",
                {"inplanes": 3, "planes": 4, "stride": 2, "groups": 2, "base_width": 32, "dilation": 2},
                (2, 3, 9, 7),
                partial(ref.residual_block, strides=(1, 2, 1), groups=(1, 2, 1), dilation=2),
                reads_mode=True,
            ),
            Sample(
                "kept rows",
                {"inplanes": 8, "planes": 2, "norm_layer": nn.Identity, "se_layer": tnn.SqueezeExcitation}
                | {"stochastic_depth": 0.4, "kept_rows_only": True},
                (2, 8, 6, 7),
                partial(ref.residual_block, strides=(1, 1, 1), groups=(1, 1, 1)),
                is_random=True,
                reads_mode=True,
            ),
            Sample(
                "squeeze",
                {"inplanes": 8, "planes": 2, "se_layer": partial(tnn.SqueezeExcitation, squeeze_channels=3)},
                (2, 8, 6, 7),
                partial(ref.residual_block, strides=(1, 1, 1), groups=(1, 1, 1)),
                reads_mode=True,
            ),
        ),
        (
            *_arguments(2),
            *invalid_inputs.channels("base_width"),
            BadArguments(
                InvalidInput.CHANNELS,
                {"base_width": 16},
                ValueError,
                "base_width must leave at least one channel, got 16 for planes=2",
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"conv_layer": nn.Conv2d(2, 3, 3, padding=1)},
                ValueError,
                "conv_layer has out_channels=3, expected out_channels=2",
            ),
        ),
        _inputs(8, 8, side=3),
        quantized.QuantizableBottleneck,
        shape_strategies.bottleneck(),
    ),
)
