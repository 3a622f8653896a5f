"""Convolutions with standardized filters."""

from functools import partial

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from . import invalid_inputs, shape_strategies

__all__ = ["BASE", "CHOICES", "INPUTS", "PADDED", "SPECS", "STRIDED", "STRIDES", "arguments"]


def arguments(groups: int) -> tuple[BadArguments, ...]:
    """Bad arguments of the first samples: 4 input channels, 6 output channels, which ``groups`` does not divide."""
    return (
        *invalid_inputs.channels("in_channels", "out_channels"),
        BadArguments(
            InvalidInput.GROUPS,
            {"groups": groups},
            ValueError,
            f"out_channels must be divisible by groups, got 6 and {groups}",
        ),
        BadArguments(InvalidInput.GROUPS, {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        BadArguments(InvalidInput.GROUPS, {"groups": 2.0}, TypeError, r"groups must be an int, got 2\.0"),
        *invalid_inputs.numbers_each(2, "kernel_size", "stride", "dilation"),
        BadArguments(InvalidInput.WINDOW, {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        BadArguments(InvalidInput.WINDOW, {"padding": 1.0}, TypeError, r"padding must be an int, got 1\.0"),
        BadArguments(InvalidInput.CHOICE, {"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
    )


CHOICES = (
    BadArguments(
        InvalidInput.GROUPS, {"groups": 3}, ValueError, "in_channels must be divisible by groups, got 4 and 3"
    ),
    BadArguments(InvalidInput.CHOICE, {"padding": "full"}, ValueError, "Invalid padding string 'full'"),
    BadArguments(
        InvalidInput.CHOICE, {"padding": "same", "stride": 2}, ValueError, "'same' is not supported for strided"
    ),
    BadArguments(
        InvalidInput.CHOICE, {"padding_mode": "mirror"}, ValueError, "padding_mode must be one of.*got.*'mirror'"
    ),
)
_SINGLE = BadArguments(
    InvalidInput.WINDOW,
    {"in_channels": 2, "groups": 2, "kernel_size": 1},
    ValueError,
    r"must give each filter more than one weight, got 2 / 2 \* 1 \* 1",
)
_ZERO_EPS = BadArguments(
    InvalidInput.EPS, {"eps": 0.0}, ValueError, "eps must be above 0, so that a filter of equal weights.*got 0"
)
INPUTS = (*invalid_inputs.shapes(4, (7, 9)), *invalid_inputs.types_of_torch((2, 4, 7, 9)))
_NO_PIXELS = BadInput(
    InvalidInput.NO_PIXELS, (2, 4, 0, 9), RuntimeError, "Kernel size can't be greater than actual input size"
)
BASE = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}
STRIDED = {
    "in_channels": 4,
    "out_channels": 6,
    "kernel_size": (3, 1),
    "stride": (2, 1),
    "padding": (2, 0),
    "dilation": (2, 1),
    "groups": 2,
    "bias": False,
}
# The same arguments for the references.
PADDED = {"padding": (1, 1)}
STRIDES = {"stride": (2, 1), "padding": (2, 0), "dilation": (2, 1), "groups": 2}
# By quadrature to 15 digits, and in closed form: (2 / (1 - 1 / pi))^(1/2).
_SILU, _RELU = 1.7871872221004421, 1.7128585504496627

SPECS = (
    LayerSpec(
        tnn.WSConv2d,
        (
            Sample("default", BASE, (2, 4, 7, 9), partial(ref.standardized_conv, **PADDED), reads_mode=False),
            Sample("strided", STRIDED, (2, 4, 9, 11), partial(ref.standardized_conv, **STRIDES), reads_mode=False),
        ),
        (*arguments(4), *CHOICES, *invalid_inputs.eps(), _ZERO_EPS, _SINGLE),
        (*INPUTS, _NO_PIXELS),
        shape_strategy=shape_strategies.conv2d(),
    ),
    LayerSpec(
        tnn.SWSConv2d,
        (
            Sample(
                "default", BASE, (2, 4, 7, 9), partial(ref.standardized_conv, gamma=_RELU, **PADDED), reads_mode=False
            ),
            Sample(
                "strided silu",
                STRIDED | {"activation": nn.SiLU},
                (2, 4, 9, 11),
                partial(ref.standardized_conv, gamma=_SILU, **STRIDES),
                reads_mode=False,
            ),
            Sample(
                "circular",
                BASE | {"padding_mode": "circular", "gamma": 2.5},
                (2, 4, 7, 9),
                partial(ref.standardized_conv, gamma=2.5, border="wrap", **PADDED),
                reads_mode=False,
            ),
        ),
        (
            *arguments(4),
            *CHOICES,
            *invalid_inputs.eps(),
            _ZERO_EPS,
            _SINGLE,
            *invalid_inputs.layers("activation"),
            BadArguments(
                InvalidInput.CHOICE,
                {"activation": partial(nn.Threshold, 1e9, 0.0)},
                ValueError,
                r"activation must have a finite variance above 0, got 0\.0",
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"activation": nn.GLU},
                ValueError,
                "activation must be elementwise, got.*GLU",
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"activation": partial(nn.LogSoftmax, dim=0)},
                ValueError,
                "activation must be elementwise, got.*LogSoftmax",
            ),
            BadArguments(
                InvalidInput.CHOICE, {"activation": lambda: 3}, TypeError, "activation must return a module, got int"
            ),
            BadArguments(InvalidInput.CHOICE, {"gamma": 0.0}, ValueError, r"gamma must be above 0, got 0\.0"),
            BadArguments(
                InvalidInput.CHOICE, {"gamma": invalid_inputs.NAN}, ValueError, "gamma must be finite, got nan"
            ),
            BadArguments(InvalidInput.CHOICE, {"gamma": "relu"}, TypeError, "gamma must be a number, got 'relu'"),
        ),
        (*INPUTS, _NO_PIXELS),
        shape_strategy=shape_strategies.conv2d(),
    ),
)
