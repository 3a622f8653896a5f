"""Convolution, normalization, activation in one, two and three dimensions."""

from functools import partial

import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample, XFail

from .. import reference as ref
from . import invalid_inputs, shape_strategies

__all__ = ["SPECS"]

_UNPACKS_2D_ONLY = XFail(
    'QNNPACK cannot unpack the weights of a 3-d convolution ("QNNPACK only supports conv2d_unpack right now.")',
    "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/quantized/cpu/qconv_unpack.cpp",
)


def _arguments(dims: int) -> tuple[BadArguments, ...]:
    """Bad arguments of the first samples, which have 3 input channels and 5 output channels."""
    return (
        *invalid_inputs.channels("in_channels", "out_channels"),
        BadArguments(
            InvalidInput.GROUPS, {"groups": 2}, ValueError, "in_channels must be divisible by groups, got 3 and 2"
        ),
        BadArguments(
            InvalidInput.GROUPS, {"groups": 3}, ValueError, "out_channels must be divisible by groups, got 5 and 3"
        ),
        BadArguments(InvalidInput.GROUPS, {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        *invalid_inputs.numbers_each(dims, "kernel_size", "stride", "dilation"),
        BadArguments(InvalidInput.WINDOW, {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        BadArguments(InvalidInput.WINDOW, {"padding": 1.0}, TypeError, r"padding must be an int, got 1\.0"),
        BadArguments(
            InvalidInput.EVEN_KERNEL,
            {"kernel_size": 4},
            ValueError,
            "kernel_size must be odd if padding=None.*got 4",
        ),
        BadArguments(
            InvalidInput.CHOICE,
            {"padding": "full"},
            ValueError,
            "Invalid padding string 'full', should be one of.*'same'",
        ),
        BadArguments(
            InvalidInput.CHOICE,
            {"padding": "same", "stride": 2},
            ValueError,
            "'same' is not supported for strided conv",
        ),
        *invalid_inputs.norms(5),
        *invalid_inputs.layers("activation_layer", "conv_layer"),
        BadArguments(
            InvalidInput.CHOICE, {"activation_layer": torch.relu}, TypeError, "activation_layer=.* cannot be called"
        ),
        BadArguments(
            InvalidInput.CHOICE,
            {"activation_layer": nn.PReLU(7)},
            ValueError,
            "activation_layer has num_parameters=7, expected 5",
        ),
        BadArguments(
            InvalidInput.CHOICE, {"conv_layer": nn.Linear}, TypeError, "conv_layer=.*Linear.* cannot be called"
        ),
        BadArguments(InvalidInput.CHOICE, {"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
        BadArguments(InvalidInput.CHOICE, {"inplace": 1}, TypeError, "inplace must be True or False, got 1"),
        BadArguments(
            InvalidInput.KEYWORD,
            {"activations_layer": nn.ReLU},
            TypeError,
            "unexpected keyword argument 'activations_layer'",
        ),
    )


def _inputs(image: tuple[int, ...]) -> tuple[BadInput, ...]:
    return (
        *invalid_inputs.shapes(3, image),
        *invalid_inputs.types_of_torch((2, 3, *image)),
        *invalid_inputs.no_pixels(3, len(image)),
    )


_SAME = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}

SPECS = (
    LayerSpec(
        tnn.Conv2dSame,
        (
            Sample(
                "strided",
                _SAME | {"stride": 2},
                (2, 4, 8, 9),
                partial(ref.conv2d_same, stride=(2, 2)),
                reads_mode=False,
            ),
            Sample("same size", _SAME | {"padding": 1}, (2, 4, 7, 9), ref.conv2d_same, reads_mode=False),
            Sample(
                "rectangle",
                _SAME | {"kernel_size": (4, 5), "stride": (1, 3), "dilation": (1, 2), "groups": 2, "bias": False},
                (2, 4, 9, 14),
                partial(ref.conv2d_same, stride=(1, 3), dilation=(1, 2), groups=2),
                reads_mode=False,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "out_channels"),
            BadArguments(
                InvalidInput.GROUPS, {"groups": 3}, ValueError, "in_channels must be divisible by groups, got 4 and 3"
            ),
            BadArguments(
                InvalidInput.GROUPS, {"groups": 4}, ValueError, "out_channels must be divisible by groups, got 6 and 4"
            ),
            *invalid_inputs.numbers_each(2, "kernel_size", "stride", "dilation"),
            BadArguments(InvalidInput.WINDOW, {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
            BadArguments(InvalidInput.CHOICE, {"padding": 1.0}, TypeError, r"padding must be an int, got 1\.0"),
            BadArguments(
                InvalidInput.CHOICE, {"padding": 0}, ValueError, r"padding must be 'same' or \(1, 1\), .*got 0"
            ),
            BadArguments(
                InvalidInput.CHOICE, {"padding": "valid"}, ValueError, r"padding must be 'same' or .*got 'valid'"
            ),
            BadArguments(InvalidInput.CHOICE, {"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
        ),
        (
            *invalid_inputs.shapes(4, (8, 9)),
            *invalid_inputs.types_of_torch((2, 4, 8, 9)),
            BadInput(InvalidInput.NO_PIXELS, (2, 4, 0, 9), ValueError, r"at least one pixel, got shape \[2, 4, 0, 9\]"),
        ),
        quantized.QuantizableConv2dSame,
        shape_strategies.conv2d_same(),
    ),
    LayerSpec(
        tnn.ConvNormAct,
        (
            Sample("default", {"in_channels": 3, "out_channels": 5}, (2, 3, 7, 9), ref.conv_norm_act, reads_mode=True),
            Sample(
                "depthwise relu6",
                {"in_channels": 6, "out_channels": 6, "kernel_size": 5, "stride": 2, "groups": 6}
                | {"activation_layer": nn.ReLU6},
                (2, 6, 9, 11),
                partial(ref.conv_norm_act, kernel_size=5, stride=2, groups=6, activation=ref.relu6),
                reads_mode=True,
            ),
            Sample(
                "rectangle silu",
                {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 1), "stride": (1, 2), "dilation": (2, 1)}
                | {"activation_layer": nn.SiLU, "groups": 2},
                (2, 4, 9, 11),
                partial(
                    ref.conv_norm_act,
                    kernel_size=(3, 1),
                    stride=(1, 2),
                    dilation=(2, 1),
                    groups=2,
                    activation=ref.silu,
                ),
                reads_mode=True,
                islands=(nn.SiLU,),
            ),
            Sample(
                "group norm instance",
                {"in_channels": 3, "out_channels": 4, "norm_layer": nn.GroupNorm(2, 4), "activation_layer": nn.ReLU()},
                (2, 3, 7, 9),
                partial(ref.conv_norm_act, norm="group2"),
                reads_mode=False,
                islands=(nn.GroupNorm,),
            ),
            Sample(
                "conv relu",
                {"in_channels": 3, "out_channels": 5, "kernel_size": 2, "padding": 0, "norm_layer": None},
                (2, 3, 7, 9),
                partial(ref.conv_norm_act, kernel_size=2, padding=0, norm="none"),
                reads_mode=False,
            ),
            Sample(
                "padding of tensorflow",
                {"in_channels": 3, "out_channels": 5, "stride": 2, "conv_layer": tnn.Conv2dSame},
                (2, 3, 8, 9),
                partial(ref.conv2d_same_norm_act, stride=(2, 2)),
                reads_mode=True,
            ),
            Sample(
                "conv norm",
                {"in_channels": 3, "out_channels": 5, "bias": True, "activation_layer": None},
                (2, 3, 7, 9),
                partial(ref.conv_norm_act, activation=ref.identity),
                reads_mode=True,
            ),
        ),
        (
            *_arguments(2),
            BadArguments(
                InvalidInput.CHOICE,
                {"conv_layer": nn.Conv2d(3, 6, 3, padding=1)},
                ValueError,
                "conv_layer has out_channels=6, expected out_channels=5",
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"conv_layer": nn.Conv2d(3, 5, 5)},
                ValueError,
                r"conv_layer has kernel_size=\(5, 5\), expected kernel_size=\(3, 3\)",
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"conv_layer": nn.LazyConv2d},
                TypeError,
                "conv_layer must not be lazy.*got LazyConv2d",
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"conv_layer": lambda *a, **k: nn.Conv2d(3, 9, 3)},
                ValueError,
                "conv_layer has out_channels=9, expected out_channels=5",
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"conv_layer": nn.Conv2d(3, 5, 3, padding=1, bias=False), "bias": True},
                ValueError,
                "bias must match conv_layer, which has no bias, got True",
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"conv_layer": partial(nn.Conv2d, bias=True), "bias": False},
                ValueError,
                "bias must match conv_layer, which has a bias, got False",
            ),
        ),
        (
            *_inputs((7, 9)),
            BadInput(
                InvalidInput.CHOICE, (2, 3, 7, 9), ValueError, "expected 2D or 3D input", {"norm_layer": nn.BatchNorm1d}
            ),
        ),
        quantized.QuantizableConvNormAct,
        shape_strategies.conv_norm_act(2),
    ),
    LayerSpec(
        tnn.Conv1dNormAct,
        (
            Sample("default", {"in_channels": 3, "out_channels": 5}, (2, 3, 11), ref.conv_norm_act, reads_mode=True),
            Sample(
                "strided",
                {"in_channels": 4, "out_channels": 6, "kernel_size": 5, "stride": 2, "dilation": 2, "groups": 2},
                (2, 4, 19),
                partial(ref.conv_norm_act, kernel_size=5, stride=2, dilation=2, groups=2),
                reads_mode=True,
            ),
        ),
        _arguments(1),
        _inputs((11,)),
        quantized.QuantizableConv1dNormAct,
        shape_strategies.conv_norm_act(1),
    ),
    LayerSpec(
        tnn.Conv3dNormAct,
        (
            Sample(
                "default", {"in_channels": 3, "out_channels": 5}, (2, 3, 4, 6, 7), ref.conv_norm_act, reads_mode=True
            ),
            Sample(
                "spatial stride",
                {"in_channels": 3, "out_channels": 5, "kernel_size": (1, 3, 3), "stride": (1, 2, 2)},
                (2, 3, 4, 6, 7),
                partial(ref.conv_norm_act, kernel_size=(1, 3, 3), stride=(1, 2, 2)),
                reads_mode=True,
            ),
        ),
        _arguments(3),
        _inputs((4, 6, 7)),
        quantized.QuantizableConv3dNormAct,
        shape_strategies.conv_norm_act(3),
        {"int8_io[qnnpack]": _UNPACKS_2D_ONLY},
    ),
)
