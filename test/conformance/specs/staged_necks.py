"""Staged layers for necks and decoders."""

from functools import partial

import numpy as np
import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import neck_reference as ref
from .. import reference
from ..adapters import Concatenated, Pyramid, WithSkip
from . import invalid_inputs, neck_shape_strategies

__all__ = ["SPECS"]

_GROUPS = partial(nn.GroupNorm, 2)


def _layers(channels: int) -> tuple[BadArguments, ...]:
    """``norm_layer``, whose first call has these channels, and ``activation_layer``."""
    return (*invalid_inputs.norms(channels), *invalid_inputs.layers("activation_layer"))


def _levels(*channels: int) -> list[torch.Tensor]:
    return [torch.zeros(2, c, 8 // 2**i, 10 // 2**i) for i, c in enumerate(channels)]


def _bad_levels(*channels: int) -> tuple[BadInput, ...]:
    """Levels that a layer for levels with these channels must reject."""
    good = _levels(*channels)
    dimensions = "level 1 of input must have 4 dimensions, got 3: shape"
    shown = ", ".join(map(str, channels))
    count = rf"input must have {len(channels)} levels, with \[{shown}\] channels, got "
    return (
        BadInput(InvalidInput.RANK, [good[0], good[1][0], *good[2:]], ValueError, dimensions),
        BadInput(InvalidInput.RANK, good[:-1], ValueError, count + str(len(channels) - 1)),
        BadInput(InvalidInput.RANK, [*good, good[-1]], ValueError, count + str(len(channels) + 1)),
        BadInput(InvalidInput.RANK, [], ValueError, count + "0"),
        BadInput(
            InvalidInput.WIDTH,
            _levels(*channels[:-1], channels[-1] + 1),
            ValueError,
            f"level {len(channels) - 1} of input must have {channels[-1]} channels, got {channels[-1] + 1}: shape",
        ),
        BadInput(
            InvalidInput.WIDTH,
            {f"level{i}": level for i, level in enumerate(_levels(*channels[:-1], 1))},
            ValueError,
            f"level {len(channels) - 1} of input must have {channels[-1]} channels, got 1: shape",
        ),
        BadInput(InvalidInput.DTYPE, good[0], TypeError, "input must be a list, tuple or dict of tensors, got Tensor"),
        BadInput(InvalidInput.DTYPE, None, TypeError, "input must be a list, tuple or dict of tensors, got NoneType"),
        BadInput(
            InvalidInput.DTYPE, [good[0], None, *good[2:]], TypeError, "level 1 of input must be a Tensor, got NoneType"
        ),
        BadInput(InvalidInput.DTYPE, [level.double() for level in good], RuntimeError, r"[Dd]ouble.*[Ff]loat\b"),
        BadInput(
            InvalidInput.NO_PIXELS,
            [good[0], good[1][:, :, :0], *good[2:]],
            ValueError,
            "level 1 of input must have at least one pixel",
        ),
    )


SPECS = (
    LayerSpec(
        enn.Concatenation,
        (
            Sample("default", {}, (2, 3, 5, 7), ref.concatenation, reads_mode=False, adapter=Concatenated),
            Sample(
                "last",
                {"dim": -1},
                (2, 3, 7),
                partial(ref.concatenation, dim=-1),
                reads_mode=False,
                adapter=Concatenated,
            ),
        ),
        (
            BadArguments(InvalidInput.CHANNELS, {"dim": 1.0}, TypeError, r"dim must be an int, got 1\.0"),
            BadArguments(InvalidInput.CHANNELS, {"dim": None}, TypeError, "dim must be an int, got None"),
            BadArguments(InvalidInput.CHANNELS, {"dim": True}, TypeError, "dim must be an int, got True"),
        ),
        (
            BadInput(InvalidInput.RANK, [], ValueError, "inputs must hold at least one tensor, got none"),
            BadInput(
                InvalidInput.RANK,
                [torch.zeros(3)],
                ValueError,
                r"inputs must have a dimension 1, got shape \[3\]",
            ),
            BadInput(
                InvalidInput.RANK,
                [torch.zeros(2, 3), torch.zeros(2, 3, 4)],
                ValueError,
                r"inputs\[1\] must have the shape of inputs\[0\], \[2, 3\], except in dimension 1, got \[2, 3, 4\]",
            ),
            BadInput(
                InvalidInput.RANK,
                [torch.zeros(2, 3, 5), torch.zeros(1, 3, 5)],
                ValueError,
                r"inputs\[1\] must have the shape of inputs\[0\], \[2, 3, 5\], except.*got \[1, 3, 5\]",
            ),
            BadInput(  # torch.cat skips an empty vector
                InvalidInput.RANK,
                [torch.zeros(2, 3), torch.zeros(0)],
                ValueError,
                r"inputs\[1\] must have the shape of inputs\[0\], \[2, 3\], except in dimension 1, got \[0\]",
            ),
            BadInput(
                InvalidInput.DTYPE,
                torch.zeros(2, 3),
                TypeError,
                "inputs must be a list or tuple of tensors, got Tensor",
            ),
            BadInput(
                InvalidInput.DTYPE,
                [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)],
                TypeError,
                r"inputs\[1\] must have a floating-point dtype, got torch\.int64",
            ),
            BadInput(
                InvalidInput.DTYPE, [torch.zeros(2, 3), 1.0], TypeError, r"inputs\[1\] must be a Tensor, got float"
            ),
            BadInput(
                InvalidInput.DTYPE,
                [torch.zeros(2, 3, dtype=torch.uint8)],
                TypeError,
                r"inputs\[0\] must have a floating-point dtype, got torch\.uint8",
            ),
            BadInput(
                InvalidInput.DTYPE,
                [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)],
                TypeError,
                r"inputs\[1\] must have the dtype of inputs\[0\], torch\.float32, got torch\.float64",
            ),
        ),
        shape_strategy=neck_shape_strategies.concatenation(),
    ),
    LayerSpec(
        enn.ASPP,
        (
            Sample(
                "default",
                {"in_channels": 4, "atrous_rates": (2, 3), "out_channels": 3},
                (6, 4, 7, 9),
                partial(ref.aspp, rates=(2, 3)),
                is_random=True,
                reads_mode=True,
            ),
            Sample(
                "group norm",
                {"in_channels": 4, "atrous_rates": [2], "out_channels": 6, "norm_layer": _GROUPS, "dropout": 0.0},
                (2, 4, 7, 9),
                partial(ref.aspp, rates=(2,), norm="group2"),
                reads_mode=True,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "out_channels"),
            *invalid_inputs.probability("dropout"),
            *_layers(3),
            BadArguments(
                InvalidInput.CHOICE, {"atrous_rates": (2, 0)}, ValueError, "atrous_rates must be at least 1, got 0"
            ),
            BadArguments(InvalidInput.CHOICE, {"atrous_rates": 6}, TypeError, "must be a sequence of ints, got 6"),
            BadArguments(InvalidInput.CHOICE, {"atrous_rates": [2.0]}, TypeError, r"must be an int, got 2\.0"),
        ),
        (
            *invalid_inputs.shapes(4, (7, 9)),
            *invalid_inputs.types_of_torch((2, 4, 7, 9)),
            BadInput(InvalidInput.NO_PIXELS, (2, 4, 0, 9), ValueError, r"at least one pixel, got shape \[2, 4, 0, 9\]"),
            BadInput(
                InvalidInput.NO_PIXELS,
                (1, 4, 7, 9),
                ValueError,
                "Expected more than 1 value per channel when training",
                training=True,
            ),
        ),
        shape_strategy=neck_shape_strategies.aspp(),
    ),
    LayerSpec(
        enn.UpBlock,
        (
            Sample(
                "default",
                {"in_channels": 4, "skip_channels": 2, "out_channels": 3},
                (2, 6, 7, 9),
                partial(ref.up_block, in_channels=4, up="nearest"),
                reads_mode=True,
                adapter=WithSkip,
            ),
            Sample(
                "transposed",
                {"in_channels": 4, "skip_channels": 2, "out_channels": 3}
                | {"up_layer": partial(nn.ConvTranspose2d, kernel_size=2, stride=2)},
                (2, 6, 7, 9),
                partial(ref.up_block, in_channels=4, up="transposed"),
                reads_mode=True,
                adapter=WithSkip,
            ),
            Sample(
                "bilinear",
                {"in_channels": 3, "skip_channels": 2, "out_channels": 4, "mode": "bilinear"} | {"norm_layer": _GROUPS},
                (2, 5, 8, 7),
                partial(ref.up_block, in_channels=3, up="bilinear", norm="group2"),
                reads_mode=False,
                adapter=WithSkip,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "skip_channels", "out_channels"),
            *_layers(3),
            *invalid_inputs.layers("up_layer"),
            BadArguments(
                InvalidInput.CHOICE, {"mode": "cubic"}, ValueError, "mode must be 'nearest' or 'bilinear', got 'cubic'"
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"up_layer": nn.Conv2d(4, 5, 1)},
                ValueError,
                "up_layer has out_channels=5, expected 3",
            ),
        ),
        (
            BadInput(
                InvalidInput.RANK, (4, 7, 9), ValueError, "input must have 4 dimensions, got 3", others=[(2, 2, 7, 9)]
            ),
            BadInput(
                InvalidInput.RANK, (2, 4, 3, 4), ValueError, "skip must have 4 dimensions, got 3", others=[(2, 7, 9)]
            ),
            BadInput(
                InvalidInput.WIDTH, (2, 5, 3, 4), ValueError, "input must have 4 channels, got 5", others=[(2, 2, 7, 9)]
            ),
            BadInput(
                InvalidInput.WIDTH, (2, 4, 3, 4), ValueError, "skip must have 2 channels, got 1", others=[(2, 1, 7, 9)]
            ),
            BadInput(
                InvalidInput.WIDTH,
                (2, 4, 3, 4),
                ValueError,
                "skip must have the batch size of input, 2, got 1",
                others=[(1, 2, 7, 9)],
            ),
            BadInput(
                InvalidInput.DTYPE, None, TypeError, "input must be a Tensor, got NoneType", others=[(2, 2, 7, 9)]
            ),
            BadInput(InvalidInput.DTYPE, (2, 4, 3, 4), TypeError, "skip must be a Tensor, got NoneType", others=[None]),
            BadInput(
                InvalidInput.DTYPE,
                torch.zeros(2, 4, 3, 4, dtype=torch.float64),
                RuntimeError,
                r"[Dd]ouble.*[Ff]loat\b",
                others=[(2, 2, 7, 9)],
            ),
            BadInput(
                InvalidInput.NO_PIXELS,
                (2, 4, 0, 4),
                ValueError,
                "input must have at least one pixel",
                others=[(2, 2, 7, 9)],
            ),
            BadInput(
                InvalidInput.NO_PIXELS,
                (2, 4, 3, 4),
                ValueError,
                "skip must have at least one pixel",
                others=[(2, 2, 7, 0)],
            ),
        ),
        shape_strategy=neck_shape_strategies.up_block(),
    ),
    LayerSpec(
        enn.SPPF,
        (
            Sample("default", {"in_channels": 4, "out_channels": 3}, (2, 4, 7, 9), ref.sppf, reads_mode=True),
            Sample(
                "four windows",
                {"in_channels": 4, "out_channels": 5, "kernel_size": 3, "pools": 4, "hidden_channels": 6}
                # Bounded, because pools spread a value beyond the range of calibration over the whole window.
                | {"activation_layer": partial(nn.Hardtanh, 0.0, 1.5)},
                (2, 4, 7, 9),
                partial(ref.sppf, kernel=3, pools=4, activation=partial(np.clip, a_min=0.0, a_max=1.5)),
                reads_mode=True,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "out_channels", "hidden_channels"),
            *invalid_inputs.numbers("kernel_size", "pools"),
            BadArguments(InvalidInput.EVEN_KERNEL, {"kernel_size": 4}, ValueError, "kernel_size must be odd, got 4"),
            *_layers(2),
        ),
        (
            *invalid_inputs.shapes(4, (7, 9)),
            *invalid_inputs.types_of_torch((2, 4, 7, 9)),
            *invalid_inputs.no_pixels(4),
        ),
        shape_strategy=neck_shape_strategies.sppf(),
    ),
    LayerSpec(
        enn.CSPBlock,
        (
            Sample(
                "default",
                {"in_channels": 4, "out_channels": 6, "depth": 2},
                (2, 4, 7, 9),
                partial(
                    ref.csp_block,
                    block=partial(reference.residual_block, strides=(1, 1), groups=(1, 1)),
                    depth=2,
                ),
                reads_mode=True,
            ),
            Sample(
                "aggregates",
                {"in_channels": 4, "out_channels": 5, "block": tnn.ConvNormAct, "depth": 2, "aggregates": True}
                | {"hidden_channels": 3, "activation_layer": nn.ReLU},
                (2, 4, 7, 9),
                partial(
                    ref.csp_block,
                    block=reference.conv_norm_act,
                    depth=2,
                    aggregates=True,
                    activation=reference.relu,
                ),
                reads_mode=True,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "out_channels", "hidden_channels", "depth"),
            *_layers(6),
            *invalid_inputs.layers("block"),
            BadArguments(
                InvalidInput.CHOICE,
                {"block": lambda channels, _: tnn.ConvNormAct(channels, 5)},
                ValueError,
                "block has out_channels=5, expected 3",
            ),
            BadArguments(InvalidInput.CHOICE, {"aggregates": 1}, TypeError, "aggregates must be True or False, got 1"),
        ),
        (
            *invalid_inputs.shapes(4, (7, 9)),
            *invalid_inputs.types_of_torch((2, 4, 7, 9)),
            *invalid_inputs.no_pixels(4),
            BadInput(
                InvalidInput.WIDTH,
                (2, 4, 7, 9),
                ValueError,
                r"the output of blocks\[0\] must have the shape of its input \[2, 3, 7, 9\], got \[2, 3, 4, 5\]",
                {"block": partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)},
            ),
        ),
        shape_strategy=neck_shape_strategies.csp_block(),
    ),
    LayerSpec(
        enn.FeaturePyramid,
        (
            Sample(
                "default",
                {"in_channels_list": [2, 3, 4], "out_channels": 3},
                (2, 9, 11, 14),
                partial(ref.feature_pyramid, channels=(2, 3, 4)),
                reads_mode=False,
                adapter=Pyramid,
            ),
            Sample(
                "batch norm",
                {"in_channels_list": (4, 3), "out_channels": 4, "norm_layer": nn.BatchNorm2d},
                (2, 7, 8, 10),
                partial(ref.feature_pyramid, channels=(4, 3), norm="batch"),
                reads_mode=True,
                adapter=Pyramid,
            ),
        ),
        (
            *invalid_inputs.channels("out_channels"),
            *(
                BadArguments(
                    InvalidInput.CHANNELS,
                    {"in_channels_list": channels},
                    ValueError,
                    f"in_channels_list must be a non-empty sequence of ints, got {shown}",
                )
                for channels, shown in (([], r"\[\]"), (None, "None"), (7, "7"), ("73", "'73'"))
            ),
            BadArguments(
                InvalidInput.CHANNELS,
                {"in_channels_list": [2, 0]},
                ValueError,
                "in_channels_list must be at least 1, got 0",
            ),
            *invalid_inputs.norms(3),
            *invalid_inputs.layers("extra_blocks"),
        ),
        _bad_levels(2, 3, 4),
        shape_strategy=neck_shape_strategies.feature_pyramid(),
    ),
    LayerSpec(
        enn.PathAggregation,
        (
            Sample(
                "default",
                {"channels": 3, "levels": 3},
                (2, 9, 11, 14),
                partial(ref.path_aggregation, channels=3, levels=3),
                reads_mode=False,
                adapter=Pyramid,
            ),
            Sample(
                "batch norm",
                {"channels": 3, "levels": 2, "norm_layer": nn.BatchNorm2d, "activation_layer": nn.SiLU},
                (2, 6, 7, 9),
                partial(ref.path_aggregation, channels=3, levels=2, norm="batch", activation=reference.silu),
                reads_mode=True,
                adapter=Pyramid,
            ),
        ),
        (*invalid_inputs.channels("channels", "levels"), *_layers(3)),
        _bad_levels(3, 3, 3),
        shape_strategy=neck_shape_strategies.path_aggregation(),
    ),
)
