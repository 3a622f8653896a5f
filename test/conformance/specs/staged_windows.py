"""Staged layers of Swin Transformers."""

from functools import partial
from typing import Any

from hypothesis import strategies as st
from torch import nn

from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample, ShapeExample

from .. import reference, window_reference
from . import invalid_inputs
from .shape_strategies import BATCH, IMAGE, one_or_each, width

__all__ = ["SPECS"]

_VERSION = (
    BadArguments(InvalidInput.CHOICE, {"version": 3}, ValueError, "version must be 1 or 2, got 3"),
    BadArguments(InvalidInput.CHOICE, {"version": 0}, ValueError, "version must be at least 1, got 0"),
    BadArguments(InvalidInput.CHOICE, {"version": "v2"}, TypeError, "version must be an int, got 'v2'"),
)


def _no_pixels(channels: int) -> tuple[BadInput, ...]:
    return tuple(
        BadInput(InvalidInput.NO_PIXELS, (2, channels, *image), ValueError, "input must have at least one pixel")
        for image in ((0, 9), (7, 0))
    )


_WINDOWS = (
    *invalid_inputs.channels("dim", "num_heads"),
    BadArguments(InvalidInput.HEADS, {"num_heads": 4}, ValueError, "dim must be divisible by num_heads, got 6 and 4"),
    BadArguments(InvalidInput.HEADS, {"num_heads": 7}, ValueError, "dim must be divisible by num_heads, got 6 and 7"),
    *invalid_inputs.numbers_each(2, "window_size"),
    BadArguments(InvalidInput.WINDOW, {"shift_size": -1}, ValueError, "shift_size must be at least 0, got -1"),
    BadArguments(
        InvalidInput.WINDOW,
        {"shift_size": (1, 4)},
        ValueError,
        r"shift_size must be below window_size, got \(1, 4\) and \(3, 4\)",
    ),
    BadArguments(InvalidInput.WINDOW, {"shift_size": 1.0}, TypeError, r"shift_size must be an int, got 1\.0"),
)


@st.composite
def _merged(draw: st.DrawFn) -> ShapeExample:
    dim = draw(st.integers(1, 4))
    kwargs = {"dim": dim, "version": draw(st.integers(1, 2))}
    batch, channels, (height, breadth) = draw(BATCH), draw(width(dim)), draw(IMAGE)
    out = (batch, 2 * dim, (height + 1) // 2, (breadth + 1) // 2)
    return ShapeExample(
        kwargs, (batch, channels, height, breadth), out if channels == dim and min(out[2:]) > 0 else None
    )


@st.composite
def _attended(draw: st.DrawFn) -> ShapeExample:
    """Any window and any shift, smaller or larger than the image."""
    heads = draw(st.integers(1, 3))
    dim = heads * draw(st.integers(1, 2))
    window = draw(one_or_each(st.integers(1, 4), 2))
    smallest = window if isinstance(window, int) else min(window)
    kwargs: dict[str, Any] = {"dim": dim, "num_heads": heads, "window_size": window}
    kwargs |= {"shift_size": draw(st.integers(0, smallest - 1)), "version": draw(st.integers(1, 2))}
    shape = (draw(BATCH), draw(width(dim)), *draw(IMAGE))
    return ShapeExample(kwargs, shape, shape if shape[1] == dim and 0 not in shape[2:] else None)


_SHIFTED = {"dim": 6, "num_heads": 3, "window_size": (3, 4), "shift_size": (1, 2)}
_ATTENTION = partial(window_reference.window_attention, heads=3, window=(3, 4))
_BLOCK = partial(window_reference.swin_block, heads=3, window=(3, 4))

SPECS = (
    LayerSpec(
        enn.PatchMerging,
        (
            Sample("default", {"dim": 6}, (2, 6, 7, 9), window_reference.patch_merging, reads_mode=False),
            Sample(
                "version 2",
                {"dim": 5, "version": 2},
                (2, 5, 8, 6),
                partial(window_reference.patch_merging, version=2),
                reads_mode=False,
            ),
        ),
        (*invalid_inputs.channels("dim"), *invalid_inputs.norms(24), *_VERSION),
        (*invalid_inputs.shapes(6, (7, 9)), *invalid_inputs.types((2, 6, 7, 9)), *_no_pixels(6)),
        shape_strategy=_merged(),
    ),
    LayerSpec(
        enn.WindowAttention,
        (
            Sample("default", {**_SHIFTED, "shift_size": 0}, (2, 6, 7, 9), _ATTENTION, reads_mode=False),
            Sample("shifted", _SHIFTED, (2, 6, 8, 9), partial(_ATTENTION, shift=(1, 2)), reads_mode=False),
            Sample(
                "version 2",
                {**_SHIFTED, "version": 2, "proj_bias": False},
                (2, 6, 7, 9),
                partial(_ATTENTION, shift=(1, 2), version=2),
                reads_mode=False,
            ),
            Sample(
                "dropout",
                {**_SHIFTED, "qkv_bias": False, "attention_dropout": 0.2, "dropout": 0.1},
                (2, 6, 7, 9),
                partial(_ATTENTION, shift=(1, 2)),
                is_random=True,
                reads_mode=True,
            ),
        ),
        (
            *_WINDOWS,
            *invalid_inputs.probability("attention_dropout"),
            *invalid_inputs.probability("dropout"),
            *_VERSION,
            BadArguments(InvalidInput.CHOICE, {"qkv_bias": 1}, TypeError, "qkv_bias must be True or False, got 1"),
            BadArguments(
                InvalidInput.CHOICE, {"proj_bias": "no"}, TypeError, "proj_bias must be True or False, got 'no'"
            ),
        ),
        (*invalid_inputs.shapes(6, (7, 9)), *invalid_inputs.types((2, 6, 7, 9)), *_no_pixels(6)),
        shape_strategy=_attended(),
    ),
    LayerSpec(
        enn.SwinBlock,
        (
            Sample("default", {**_SHIFTED, "shift_size": 0}, (2, 6, 7, 9), _BLOCK, reads_mode=False),
            Sample(
                "version 2",
                {**_SHIFTED, "version": 2, "mlp_ratio": 2, "activation_layer": nn.ReLU},
                (2, 6, 7, 9),
                partial(_BLOCK, shift=(1, 2), version=2, activation=reference.relu),
                reads_mode=False,
            ),
            Sample(
                "stochastic depth",
                {**_SHIFTED, "stochastic_depth": 0.2},
                (3, 6, 8, 9),
                partial(_BLOCK, shift=(1, 2)),
                is_random=True,
                reads_mode=True,
            ),
            Sample(
                "dropout",
                {**_SHIFTED, "version": 2, "dropout": 0.1},
                (2, 6, 7, 9),
                partial(_BLOCK, shift=(1, 2), version=2),
                is_random=True,
                reads_mode=True,
            ),
        ),
        (
            *_WINDOWS,
            *invalid_inputs.probability("attention_dropout"),
            *invalid_inputs.probability("dropout"),
            *invalid_inputs.probability("stochastic_depth"),
            *invalid_inputs.norms(6),
            *invalid_inputs.layers("activation_layer"),
            *_VERSION,
            BadArguments(
                InvalidInput.CHANNELS, {"mlp_ratio": 0.1}, ValueError, r"mlp_ratio must give at least one.*got 0\.1"
            ),
            BadArguments(InvalidInput.CHANNELS, {"mlp_ratio": "4"}, TypeError, "mlp_ratio must be a number, got '4'"),
        ),
        (
            *invalid_inputs.shapes(6, (7, 9)),
            *invalid_inputs.types((2, 6, 7, 9)),
            *_no_pixels(6),
            # One column remains, which would broadcast.
            BadInput(
                InvalidInput.RESIDUAL,
                (2, 6, 7, 9),
                ValueError,
                r"norm_layer must have the shape of the input \[2, 7, 9, 6\], got \[2, 7, 1, 6\]",
                {"version": 2, "norm_layer": lambda channels: nn.AdaptiveAvgPool2d((1, channels))},
            ),
        ),
        shape_strategy=_attended(),
    ),
)
