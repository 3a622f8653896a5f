"""Experimental replacements of a convolution."""

from functools import partial

from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import staged_reference as ref
from . import shape_strategies, staged_shape_strategies
from .weight_standardization import BASE, CHOICES, INPUTS, PADDED, STRIDED, STRIDES, arguments

__all__ = ["SPECS"]

SPECS = (
    LayerSpec(
        enn.CoordConv2d,
        (
            Sample("default", BASE, (2, 4, 7, 9), partial(ref.coord_conv, **PADDED), reads_mode=False),
            Sample(
                "strided with r",
                STRIDED | {"with_r": True},
                (2, 4, 9, 11),
                partial(ref.coord_conv, with_r=True, **STRIDES),
                reads_mode=False,
            ),
        ),
        (
            *arguments(4),
            *CHOICES,
            BadArguments(InvalidInput.CHOICE, {"with_r": 1}, TypeError, "with_r must be True or False, got 1"),
        ),
        (
            *INPUTS,
            BadInput(InvalidInput.NO_PIXELS, (2, 4, 0, 9), ValueError, r"at least one pixel, got shape \[2, 4, 0, 9\]"),
        ),
        shape_strategy=shape_strategies.conv2d(needs_pixels=True),
    ),
    LayerSpec(
        enn.MultiHeadedSpatialAttention,
        (
            Sample(
                "default",
                BASE,
                (2, 4, 7, 9),
                partial(ref.spatial_attention, kernel=(3, 3), **PADDED),
                reads_mode=False,
            ),
            Sample(
                "heads, strided",
                BASE | {"out_channels": 8, "kernel_size": (3, 5), "stride": 2, "groups": 4, "bias": False},
                (2, 4, 9, 11),
                partial(ref.spatial_attention, kernel=(3, 5), stride=(2, 2), **PADDED),
                reads_mode=False,
            ),
            Sample(
                "dilated",
                BASE | {"kernel_size": (3, 4), "padding": 2, "stride": (1, 2), "dilation": 2, "bias": False},
                (2, 4, 10, 12),
                partial(ref.spatial_attention, kernel=(3, 4), padding=(2, 2), stride=(1, 2), dilation=(2, 2)),
                reads_mode=False,
            ),
        ),
        (
            *arguments(4),
            BadArguments(
                InvalidInput.GROUPS, {"groups": 2}, ValueError, "out_channels / groups must be even.*got 6 / 2"
            ),
            BadArguments(InvalidInput.WINDOW, {"padding": 2}, ValueError, "padding must be at most.*= 1, .*got 2"),
            BadArguments(InvalidInput.WINDOW, {"padding": (1, 3)}, ValueError, "padding must be at most.*= 1, .*got 3"),
            BadArguments(InvalidInput.CHOICE, {"padding": "same"}, TypeError, "padding must be an int, got 'same'"),
        ),
        (
            *INPUTS,
            BadInput(
                InvalidInput.NO_PIXELS,
                (2, 4, 0, 9),
                ValueError,
                r"input must be at least 1 in dimension 2 to hold a window, got shape \[2, 4, 0, 9\]",
            ),
            BadInput(
                InvalidInput.WINDOW,
                (2, 4, 7, 4),
                ValueError,
                r"input must be at least 5 in dimension 3 to hold a window, got shape \[2, 4, 7, 4\]",
                {"kernel_size": 5, "padding": 0},
            ),
        ),
        shape_strategy=staged_shape_strategies.attention(),
    ),
)
