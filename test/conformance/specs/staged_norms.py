"""Staged normalizations."""

from functools import partial

from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import staged_reference as ref
from . import invalid_inputs, staged_shape_strategies

__all__ = ["SPECS"]

_DIMS = (
    BadArguments(
        InvalidInput.CHOICE, {"dims": (1, 2)}, ValueError, r"dims must be \(1, 2, 3\) or \(2, 3\), got \(1, 2\)"
    ),
    BadArguments(
        InvalidInput.CHOICE, {"dims": (3, 2)}, ValueError, r"dims must be \(1, 2, 3\) or \(2, 3\), got \(3, 2\)"
    ),
    BadArguments(InvalidInput.CHOICE, {"dims": ()}, ValueError, r"dims must be \(1, 2, 3\) or \(2, 3\), got \(\)"),
    BadArguments(InvalidInput.CHOICE, {"dims": "23"}, TypeError, r"dims must be \(1, 2, 3\) or \(2, 3\), got '23'"),
    BadArguments(InvalidInput.CHOICE, {"dims": 1}, TypeError, r"dims must be \(1, 2, 3\) or \(2, 3\), got 1"),
)


def _too_few(channels: int) -> tuple[BadInput, ...]:
    few = "input must have at least two values to normalize, got shape"
    return (
        BadInput(InvalidInput.NO_PIXELS, (2, channels, 0, 9), ValueError, rf"{few} \[2, {channels}, 0, 9\]"),
        BadInput(
            InvalidInput.NO_PIXELS, (2, channels, 1, 1), ValueError, rf"{few} \[2, {channels}, 1, 1\]", {"dims": (2, 3)}
        ),
    )


SPECS = (
    LayerSpec(
        enn.PFLayerNorm,
        (
            Sample("default", {}, (2, 4, 7, 9), ref.c_layer_norm, reads_mode=False, dynamic_dims=(0, 2, 3)),
            Sample(
                "each channel",
                {"dims": [2, 3], "eps": 1e-3},
                (2, 4, 7, 9),
                partial(ref.c_layer_norm, each_channel=True, eps=1e-3),
                reads_mode=False,
            ),
        ),
        (*_DIMS, *invalid_inputs.eps()),
        (
            BadInput(
                InvalidInput.RANK, (4, 7, 9), ValueError, r"input must have 4 dimensions, got 3: shape \[4, 7, 9\]"
            ),
            BadInput(InvalidInput.RANK, (1, 2, 4, 7, 9), ValueError, "input must have 4 dimensions, got 5: shape"),
            *invalid_inputs.no_tensors(),
            *invalid_inputs.not_floating((2, 4, 7, 9)),
            *_too_few(4),
        ),
        shape_strategy=staged_shape_strategies.normalized(),
    ),
    LayerSpec(
        enn.CLayerNorm,
        (
            Sample("default", {"channels": 4}, (2, 4, 7, 9), ref.c_layer_norm, reads_mode=False),
            Sample(
                "each channel",
                {"channels": 4, "dims": (2, 3), "eps": 1e-3},
                (2, 4, 7, 9),
                partial(ref.c_layer_norm, each_channel=True, eps=1e-3),
                reads_mode=False,
            ),
        ),
        (*invalid_inputs.channels("channels"), *_DIMS, *invalid_inputs.eps()),
        (*invalid_inputs.shapes(4, (7, 9)), *invalid_inputs.types((2, 4, 7, 9)), *_too_few(4)),
        shape_strategy=staged_shape_strategies.normalized("channels"),
    ),
)
