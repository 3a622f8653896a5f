"""One spec a layer: all that the matrix in ``test_matrix.py`` needs to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import reference as ref
import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

__all__ = ["SPECS", "LayerSpec", "Sample"]


@dataclass(frozen=True)
class Sample:
    """One way to build a layer, and an input for it; sizes differ pairwise, so no two are taken for one another."""

    id: str
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    #: Called with input, weights (arrays by key) and whether in training.
    reference: Callable[..., ref.Array]
    #: Whether it draws random numbers in training, where no reference holds.
    is_random: bool = False
    dynamic_dims: tuple[int, ...] = (0, 2, 3)
    #: Kinds of modules that an int8 model keeps in float islands.
    islands: tuple[type[nn.Module], ...] = ()
    #: Whether an int8 model keeps the layer as a whole in a float island.
    is_island: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """A public layer, its samples, what it must refuse, and its quantizable twin."""

    cls: type[nn.Module]
    samples: tuple[Sample, ...]
    #: Arguments (over those of the first sample), exception and message.
    wrong: tuple[tuple[Mapping[str, Any], type[Exception], str], ...]
    #: Inputs for the first sample, as shapes or objects, exception and message.
    wrong_inputs: tuple[tuple[object, type[Exception], str], ...]
    twin: type[nn.Module] | None = None
    #: Backends whose int8 weights torch cannot read back, neither to save nor to copy them.
    unsaved_backends: tuple[str, ...] = ()


_STRING = (TypeError, "must be a constructor.*'relu'")

_CONV_WRONG = (
    ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
    ({"out_channels": -8}, ValueError, "out_channels must be at least 1, got -8"),
    ({"in_channels": 3.0}, TypeError, r"in_channels must be an int, got 3\.0"),
    ({"groups": 2}, ValueError, "in_channels must be divisible by groups, got 3 and 2"),
    ({"groups": 3}, ValueError, "out_channels must be divisible by groups, got 5 and 3"),
    ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
    ({"kernel_size": 4}, ValueError, "kernel_size must be odd where padding=None.*got 4"),
    ({"kernel_size": (3,) * 4}, ValueError, r"kernel_size must be one int or \d of them, got \(3, 3, 3, 3\)"),
    ({"stride": -1}, ValueError, "stride must be at least 1, got -1"),
    ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
    ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    ({"activation_layer": "relu"}, TypeError, "activation_layer must be a constructor.*'relu'"),
    ({"norm_layer": "bn"}, TypeError, "norm_layer must be a constructor.*'bn'"),
    ({"conv_layer": int}, TypeError, "conv_layer must be a constructor.*int"),
    ({"activation_layer": torch.relu}, TypeError, "activation_layer=.* cannot be called"),
    ({"norm_layer": lambda channels: channels}, TypeError, "norm_layer=.* must make an nn.Module, it made int"),
    ({"norm_layer": nn.BatchNorm2d(7)}, ValueError, "norm_layer has num_features=7, its place needs 5"),
    ({"norm_layer": nn.GroupNorm(1, 7)}, ValueError, "norm_layer has num_channels=7, its place needs 5"),
    ({"activation_layer": nn.PReLU(7)}, ValueError, "activation_layer has num_parameters=7, its place needs 5"),
    ({"activations_layer": nn.ReLU}, TypeError, "unexpected keyword argument 'activations_layer'"),
    ({"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
    ({"inplace": 1}, TypeError, "inplace must be True or False, got 1"),
    ({"norm_layer": nn.LazyBatchNorm2d}, TypeError, "norm_layer must not be lazy.*got LazyBatchNorm2d"),
    ({"norm_layer": nn.LayerNorm(7)}, ValueError, r"norm_layer has normalized_shape=\(7,\), its place needs 5"),
)

_WRONG_2D = (
    ((3, 7, 9), ValueError, r"input must have 4 dimensions, got 3: shape \[3, 7, 9\]"),
    ((2, 4, 7, 9), ValueError, "input must have 3 channels, got 4"),
    ((2, 1, 7, 9), ValueError, "input must have 3 channels, got 1"),
    (None, TypeError, "input must be a Tensor, got NoneType"),
)


def _conv_spec(
    cls: type[nn.Module],
    twin: type[nn.Module],
    samples: tuple[Sample, ...],
    wrong: tuple,
    wrong_inputs: tuple,
    unsaved_backends: tuple[str, ...] = (),
) -> LayerSpec:
    return LayerSpec(cls, samples, _CONV_WRONG + wrong, wrong_inputs, twin, unsaved_backends)


SPECS: tuple[LayerSpec, ...] = (
    _conv_spec(
        tnn.ConvNormAct,
        quantized.QuantizableConvNormAct,
        (
            Sample("default", {"in_channels": 3, "out_channels": 5}, (2, 3, 7, 9), ref.conv_norm_act),
            Sample(
                "depthwise relu6",
                {"in_channels": 6, "out_channels": 6, "kernel_size": 5, "stride": 2, "groups": 6}
                | {"activation_layer": nn.ReLU6},
                (2, 6, 9, 11),
                partial(ref.conv_norm_act, kernel_size=5, stride=2, groups=6, activation=ref.relu6),
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
                islands=(nn.SiLU,),
            ),
            Sample(
                "group norm instance",
                {"in_channels": 3, "out_channels": 4, "norm_layer": nn.GroupNorm(2, 4), "activation_layer": nn.ReLU()},
                (2, 3, 7, 9),
                partial(ref.conv_norm_act, norm="group2"),
                islands=(nn.GroupNorm,),
            ),
            Sample(
                "conv relu",
                {"in_channels": 3, "out_channels": 5, "kernel_size": 2, "padding": 0, "norm_layer": None},
                (2, 3, 7, 9),
                partial(ref.conv_norm_act, kernel_size=2, padding=0, norm="none"),
            ),
            Sample(
                "conv norm",
                {"in_channels": 3, "out_channels": 5, "bias": True, "activation_layer": None},
                (2, 3, 7, 9),
                partial(ref.conv_norm_act, activation=ref.identity),
            ),
        ),
        (
            (
                {"conv_layer": nn.Conv2d(3, 6, 3, padding=1)},
                ValueError,
                "out_channels=6, its place needs out_channels=5",
            ),
            ({"conv_layer": nn.Conv2d(3, 5, 5)}, ValueError, r"kernel_size=\(5, 5\), its place needs"),
            ({"conv_layer": nn.LazyConv2d}, TypeError, "conv_layer must not be lazy.*got LazyConv2d"),
            ({"conv_layer": lambda *a, **k: nn.Conv2d(3, 9, 3)}, ValueError, "has out_channels=9, its place needs"),
            (
                {"conv_layer": nn.Conv2d(3, 5, 3, padding=1, bias=False), "bias": True},
                ValueError,
                "bias is True, conv_layer is an instance without one",
            ),
        ),
        _WRONG_2D,
    ),
    _conv_spec(
        tnn.Conv1dNormAct,
        quantized.QuantizableConv1dNormAct,
        (
            Sample(
                "default", {"in_channels": 3, "out_channels": 5}, (2, 3, 11), ref.conv_norm_act, dynamic_dims=(0, 2)
            ),
            Sample(
                "strided",
                {"in_channels": 4, "out_channels": 6, "kernel_size": 5, "stride": 2, "dilation": 2, "groups": 2},
                (2, 4, 19),
                partial(ref.conv_norm_act, kernel_size=5, stride=2, dilation=2, groups=2),
                dynamic_dims=(0, 2),
            ),
        ),
        (),
        (((2, 4, 11), ValueError, "3 channels, got 4"), ((3, 11), ValueError, "3 dimensions, got 2")),
    ),
    _conv_spec(
        tnn.Conv3dNormAct,
        quantized.QuantizableConv3dNormAct,
        (
            Sample(
                "default",
                {"in_channels": 3, "out_channels": 5},
                (2, 3, 4, 6, 7),
                ref.conv_norm_act,
                dynamic_dims=(0, 2, 3, 4),
            ),
            Sample(
                "spatial stride",
                {"in_channels": 3, "out_channels": 5, "kernel_size": (1, 3, 3), "stride": (1, 2, 2)},
                (2, 3, 4, 6, 7),
                partial(ref.conv_norm_act, kernel_size=(1, 3, 3), stride=(1, 2, 2)),
                dynamic_dims=(0, 2, 3, 4),
            ),
        ),
        (),
        (((2, 4, 4, 6, 7), ValueError, "3 channels, got 4"), ((2, 3, 6, 7), ValueError, "5 dimensions, got 4")),
        unsaved_backends=("qnnpack",),
    ),
    LayerSpec(
        tnn.LinearDropoutAct,
        (
            Sample("default", {"in_features": 5, "out_features": 3}, (4, 5), ref.linear_dropout_act, dynamic_dims=(0,)),
            Sample(
                "norm",
                {"in_features": 5, "out_features": 3, "bias": False, "norm_layer": nn.BatchNorm1d},
                (4, 5),
                partial(ref.linear_dropout_act, norm=True),
                dynamic_dims=(0,),
            ),
            Sample(
                "sequence",
                {"in_features": 5, "out_features": 3, "activation_layer": None},
                (4, 2, 5),
                partial(ref.linear_dropout_act, activation=ref.identity),
                dynamic_dims=(0, 1),
            ),
            Sample(
                "dropout",
                {"in_features": 5, "out_features": 3, "dropout": 0.5, "activation_layer": nn.ReLU6},
                (4, 5),
                partial(ref.linear_dropout_act, activation=ref.relu6),
                is_random=True,
                dynamic_dims=(0,),
            ),
        ),
        (
            ({"in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
            ({"out_features": "3"}, TypeError, "out_features must be an int, got '3'"),
            ({"dropout": 1.5}, ValueError, r"dropout must be in \[0, 1\], got 1.5"),
            ({"dropout": float("nan")}, ValueError, r"dropout must be in \[0, 1\], got nan"),
            ({"activation_layer": "relu"}, *_STRING),
            ({"norm_layer": nn.BatchNorm1d(4)}, ValueError, "norm_layer has num_features=4, its place needs 3"),
        ),
        (((4, 6), ValueError, "size 5 in dimension -1"), (None, TypeError, "must be a Tensor, got NoneType")),
        quantized.QuantizableLinearDropoutAct,
    ),
    LayerSpec(
        tnn.SqueezeExcitation,
        (
            Sample("default", {"input_channels": 6, "squeeze_channels": 3}, (2, 6, 7, 9), ref.squeeze_excitation),
            Sample(
                "mobilenet v3",
                {"input_channels": 6, "squeeze_channels": 2, "scale_activation": nn.Hardsigmoid},
                (3, 6, 5, 4),
                partial(ref.squeeze_excitation, scale_activation=ref.hard_sigmoid),
            ),
        ),
        (
            ({"squeeze_channels": 0}, ValueError, "squeeze_channels must be at least 1, got 0"),
            ({"input_channels": -1}, ValueError, "input_channels must be at least 1, got -1"),
            ({"activation": "relu"}, *_STRING),
            ({"scale_activation": nn.PReLU(4)}, ValueError, "scale_activation has num_parameters=4, its place needs 6"),
        ),
        (
            ((2, 5, 7, 9), ValueError, "6 channels, got 5"),
            ((6, 7, 9), ValueError, "4 dimensions, got 3"),
            ((2, 6, 0, 9), ValueError, r"at least one pixel, got shape \[2, 6, 0, 9\]"),
        ),
        quantized.QuantizableSqueezeExcitation,
    ),
    LayerSpec(
        tnn.StochasticDepth,
        (
            Sample("row", {"p": 0.3, "mode": "row"}, (2, 3, 5), lambda x, weights, training: x, True, (0, 1, 2)),
            Sample("batch", {"p": 0.3, "mode": "batch"}, (2, 3, 5), lambda x, weights, training: x, True, (0, 1, 2)),
            Sample("never", {"p": 0.0, "mode": "row"}, (2, 3, 5), lambda x, weights, training: x, False, (0, 1, 2)),
        ),
        (
            ({"p": -0.1}, ValueError, r"p must be in \[0, 1\], got -0.1"),
            ({"p": float("nan")}, ValueError, r"p must be in \[0, 1\], got nan"),
            ({"p": "half"}, TypeError, "p must be a number, got 'half'"),
            ({"mode": "column"}, ValueError, "mode must be 'batch' or 'row', got 'column'"),
        ),
        ((None, TypeError, "input must be a Tensor, got NoneType"),),
    ),
    LayerSpec(
        tnn.BasicBlock,
        (
            Sample(
                "identity",
                {"inplanes": 3, "planes": 3},
                (2, 3, 6, 7),
                partial(ref.residual_block, strides=(1, 1), groups=(1, 1)),
            ),
            Sample(
                "projection",
                {"inplanes": 3, "planes": 5, "stride": 2, "se_layer": tnn.SqueezeExcitation},
                (2, 3, 9, 7),
                partial(ref.residual_block, strides=(2, 1), groups=(1, 1)),
            ),
            Sample(
                "without norm",
                {"inplanes": 3, "planes": 5, "norm_layer": nn.Identity, "activation_layer": nn.SiLU, "dilation": 2},
                (2, 3, 9, 7),
                partial(ref.residual_block, strides=(1, 1), groups=(1, 1), dilation=2, activation=ref.silu),
                islands=(nn.SiLU,),
            ),
            Sample(
                "stochastic depth",
                {"inplanes": 3, "planes": 3, "stochastic_depth": 0.4},
                (2, 3, 6, 7),
                partial(ref.residual_block, strides=(1, 1), groups=(1, 1)),
                is_random=True,
            ),
        ),
        (
            ({"inplanes": 0}, ValueError, "inplanes must be at least 1, got 0"),
            ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
            ({"groups": 2}, ValueError, "groups and base_width must be 1 and 64 in a BasicBlock, got 2 and 64"),
            ({"stochastic_depth": 1.5}, ValueError, r"stochastic_depth must be in \[0, 1\], got 1.5"),
            ({"downsample": "conv"}, TypeError, "downsample must be a module or None, got 'conv'"),
            ({"norm_layer": "bn"}, TypeError, "norm_layer must be a constructor.*'bn'"),
            ({"norm_layer": nn.BatchNorm2d(4)}, ValueError, "norm_layer has num_features=4, its place needs 3"),
            ({"activation_layer": "relu"}, *_STRING),
            ({"se_layer": tnn.SqueezeExcitation(4, 2)}, ValueError, "se_layer has input_channels=4, its place needs 3"),
        ),
        _WRONG_2D,
        quantized.QuantizableBasicBlock,
    ),
    LayerSpec(
        tnn.Bottleneck,
        (
            Sample(
                "identity",
                {"inplanes": 8, "planes": 2},
                (2, 8, 6, 7),
                partial(ref.residual_block, strides=(1, 1, 1), groups=(1, 1, 1)),
            ),
            Sample(
                "resnext projection",
                {"inplanes": 3, "planes": 4, "stride": 2, "groups": 2, "base_width": 32, "dilation": 2},
                (2, 3, 9, 7),
                partial(ref.residual_block, strides=(1, 2, 1), groups=(1, 2, 1), dilation=2),
            ),
            Sample(
                "squeeze",
                {"inplanes": 8, "planes": 2, "se_layer": partial(tnn.SqueezeExcitation, squeeze_channels=3)},
                (2, 8, 6, 7),
                partial(ref.residual_block, strides=(1, 1, 1), groups=(1, 1, 1)),
            ),
        ),
        (
            ({"planes": 0}, ValueError, "planes must be at least 1, got 0"),
            ({"base_width": 16}, ValueError, "base_width must leave at least one channel, got 16 for planes=2"),
            ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
            (
                {"conv_layer": nn.Conv2d(2, 3, 3, padding=1)},
                ValueError,
                "out_channels=3, its place needs out_channels=2",
            ),
            ({"se_layer": "se"}, TypeError, "se_layer must be a constructor.*'se'"),
        ),
        (((2, 3, 6, 7), ValueError, "8 channels, got 3"), ((8, 6, 7), ValueError, "4 dimensions, got 3")),
        quantized.QuantizableBottleneck,
    ),
    LayerSpec(
        tnn.InvertedResidual,
        (
            Sample(
                "skip",
                {"inp": 3, "oup": 3, "stride": 1, "expand_ratio": 4},
                (2, 3, 6, 7),
                partial(ref.inverted_residual, stride=1, expands=True, has_skip=True),
            ),
            Sample(
                "first of a stage",
                {"inp": 4, "oup": 5, "stride": 2, "expand_ratio": 1, "kernel_size": 5},
                (2, 4, 9, 7),
                partial(ref.inverted_residual, stride=2, expands=False, has_skip=False),
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
            ),
            Sample(
                "squeeze silu",
                {"inp": 3, "oup": 3, "stride": 1, "expand_ratio": 2.5, "se_layer": tnn.SqueezeExcitation}
                | {"activation_layer": nn.SiLU, "stochastic_depth": 0.2},
                (2, 3, 6, 7),
                partial(ref.inverted_residual, stride=1, expands=True, has_skip=True, has_se=True, activation=ref.silu),
                is_random=True,
                islands=(nn.SiLU,),
            ),
        ),
        (
            ({"inp": 0}, ValueError, "inp must be at least 1, got 0"),
            ({"stride": 3}, ValueError, "stride must be 1 or 2, got 3"),
            ({"expand_ratio": 0}, ValueError, "expand_ratio must leave at least one channel, got 0"),
            ({"expand_ratio": "6"}, TypeError, "expand_ratio must be a number, got '6'"),
            ({"kernel_size": 4}, ValueError, "kernel_size must be odd, got 4"),
            ({"stochastic_depth": -1}, ValueError, r"stochastic_depth must be in \[0, 1\], got -1"),
            ({"activation_layer": "relu"}, *_STRING),
        ),
        _WRONG_2D,
        quantized.QuantizableInvertedResidual,
    ),
    LayerSpec(
        tnn.FrozenBatchNorm2d,
        (Sample("default", {"num_features": 3}, (2, 3, 6, 7), ref.frozen_batch_norm),),
        (
            ({"num_features": 0}, ValueError, "num_features must be at least 1, got 0"),
            ({"eps": -1.0}, ValueError, "eps must not be negative, got -1.0"),
            ({"eps": float("nan")}, ValueError, "eps must not be negative, got nan"),
        ),
        _WRONG_2D,
    ),
    LayerSpec(
        tnn.LayerNorm2d,
        (
            Sample("default", {"num_channels": 3}, (2, 3, 6, 7), ref.layer_norm_2d, is_island=True),
            Sample(
                "plain",
                {"num_channels": 5, "elementwise_affine": False, "eps": 1e-3},
                (2, 5, 6, 7),
                partial(ref.layer_norm_2d, eps=1e-3),
                is_island=True,
            ),
        ),
        (
            ({"num_channels": 0}, ValueError, "num_channels must be at least 1, got 0"),
            ({"num_channels": "3"}, TypeError, "num_channels must be an int, got '3'"),
            ({"eps": -1e-6}, ValueError, "eps must not be negative, got -1e-06"),
        ),
        _WRONG_2D,
        quantized.QuantizableLayerNorm2d,
    ),
    LayerSpec(
        tnn.LayerScale,
        (
            Sample("image", {"dim": 3, "init_value": 0.5}, (2, 3, 6, 7), ref.layer_scale, is_island=True),
            Sample(
                "sequence",
                {"dim": 3, "init_value": 0.5, "channels_dim": -1},
                (2, 7, 3),
                partial(ref.layer_scale, axis=-1),
                dynamic_dims=(0, 1),
                is_island=True,
            ),
        ),
        (
            ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
            ({"channels_dim": 2}, ValueError, "channels_dim must be 1 or -1, got 2"),
            ({"init_value": "small"}, ValueError, "could not convert string to float: 'small'"),
        ),
        (
            ((2, 4, 6, 7), ValueError, "size 3 in dimension 1, got shape"),
            ((3,), ValueError, "size 3 in dimension 1, got shape"),
            (None, TypeError, "input must be a Tensor, got NoneType"),
        ),
        quantized.QuantizableLayerScale,
    ),
    LayerSpec(
        tnn.Permute,
        (
            Sample("channels last", {"dims": (0, 2, 3, 1)}, (2, 3, 6, 7), partial(ref.permute, dims=(0, 2, 3, 1))),
            Sample("swap", {"dims": [0, -1, 1]}, (2, 3, 7), partial(ref.permute, dims=(0, 2, 1)), dynamic_dims=(0, 2)),
        ),
        (
            ({"dims": (0, 1, 1)}, ValueError, r"dims must hold each dimension once, got \(0, 1, 1\)"),
            ({"dims": ()}, ValueError, r"dims must hold each dimension once, got \(\)"),
            ({"dims": (0, 2)}, ValueError, r"dims must hold each dimension once, got \(0, 2\)"),
        ),
        (
            ((2, 3, 6), ValueError, "x must have 4 dimensions, got 3"),
            (None, TypeError, "input must be a Tensor, got NoneType"),
        ),
    ),
    LayerSpec(
        tnn.MLP,
        (
            Sample(
                "default",
                {"in_channels": 5, "hidden_channels": [7, 3]},
                (4, 5),
                partial(ref.mlp, linears=(0, 3)),
                dynamic_dims=(0,),
            ),
            Sample(
                "norm gelu",
                {"in_channels": 5, "hidden_channels": (17, 13, 7), "norm_layer": nn.BatchNorm1d}
                | {"activation_layer": nn.GELU, "bias": False},
                (4, 5),
                partial(ref.mlp, linears=(0, 4, 8), norms=(1, 5), activation=ref.gelu),
                dynamic_dims=(0,),
                islands=(nn.GELU,),
            ),
            Sample(
                "dropout",
                {"in_channels": 5, "hidden_channels": [7, 3], "dropout": 0.5, "inplace": False},
                (4, 2, 5),
                partial(ref.mlp, linears=(0, 3)),
                is_random=True,
                dynamic_dims=(0, 1),
            ),
        ),
        (
            ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
            ({"hidden_channels": []}, ValueError, r"hidden_channels must be one int or more in a list, got \[\]"),
            ({"hidden_channels": [7, 0]}, ValueError, "hidden_channels must be at least 1, got 0"),
            ({"dropout": -0.1}, ValueError, r"dropout must be in \[0, 1\], got -0.1"),
            ({"activation_layer": "relu"}, *_STRING),
            ({"norm_layer": nn.BatchNorm1d(4)}, ValueError, "norm_layer has num_features=4, its place needs 7"),
        ),
        (((4, 6), ValueError, "size 5 in dimension -1"), (None, TypeError, "must be a Tensor, got NoneType")),
        quantized.QuantizableMLP,
    ),
    LayerSpec(
        tnn.DepthwiseSeparableConv,
        (
            Sample("default", {"in_channels": 3, "out_channels": 5}, (2, 3, 6, 7), ref.depthwise_separable),
            Sample(
                "multiplier relu6",
                {"in_channels": 3, "out_channels": 4, "kernel_size": 5, "stride": 2, "depth_multiplier": 2}
                | {"activation_layer": nn.ReLU6},
                (2, 3, 9, 7),
                partial(ref.depthwise_separable, kernel_size=5, stride=2, activation=ref.relu6),
            ),
        ),
        (
            ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
            ({"out_channels": 0}, ValueError, "out_channels must be at least 1, got 0"),
            ({"depth_multiplier": 0}, ValueError, "depth_multiplier must be at least 1, got 0"),
            ({"kernel_size": 2}, ValueError, "kernel_size must be odd where padding=None.*got 2"),
            ({"activation_layer": "relu"}, *_STRING),
        ),
        _WRONG_2D,
        quantized.QuantizableDepthwiseSeparableConv,
    ),
    LayerSpec(
        tnn.MBConv,
        (
            Sample(
                "skip relu",
                {"in_channels": 4, "out_channels": 4, "activation_layer": nn.ReLU, "expand_ratio": 2},
                (2, 4, 6, 7),
                partial(ref.mbconv, places="expand depthwise squeeze project", activation=ref.relu),
            ),
            Sample(
                "first of a stage",
                {"in_channels": 4, "out_channels": 5, "kernel_size": 5, "stride": 2, "expand_ratio": 1},
                (2, 4, 9, 7),
                partial(ref.mbconv, places="depthwise squeeze project", kernel_size=5, stride=2),
                islands=(nn.SiLU,),
            ),
            Sample(
                "stochastic depth",
                {"in_channels": 3, "out_channels": 3, "stochastic_depth": 0.3, "se_layer": None}
                | {"activation_layer": nn.ReLU},
                (2, 3, 6, 7),
                partial(ref.mbconv, places="expand depthwise project", activation=ref.relu),
                is_random=True,
            ),
        ),
        (
            ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
            ({"stride": 4}, ValueError, "stride must be 1 or 2, got 4"),
            ({"expand_ratio": float("inf")}, ValueError, "expand_ratio must leave at least one channel, got inf"),
            ({"kernel_size": 4}, ValueError, "kernel_size must be odd, got 4"),
            ({"se_layer": tnn.SqueezeExcitation(4, 2)}, ValueError, "se_layer has input_channels=4, its place needs 8"),
            ({"activation_layer": "relu"}, *_STRING),
        ),
        (((2, 3, 6, 7), ValueError, "4 channels, got 3"), ((4, 6, 7), ValueError, "4 dimensions, got 3")),
        quantized.QuantizableMBConv,
    ),
    LayerSpec(
        tnn.FusedMBConv,
        (
            Sample(
                "skip relu",
                {"in_channels": 3, "out_channels": 3, "activation_layer": nn.ReLU},
                (2, 3, 6, 7),
                partial(ref.mbconv, places="full project", activation=ref.relu),
            ),
            Sample(
                "one convolution",
                {"in_channels": 3, "out_channels": 5, "stride": 2, "expand_ratio": 1},
                (2, 3, 9, 7),
                partial(ref.mbconv, places="full", stride=2),
                islands=(nn.SiLU,),
            ),
        ),
        (
            ({"out_channels": 0}, ValueError, "out_channels must be at least 1, got 0"),
            ({"stochastic_depth": 2}, ValueError, r"stochastic_depth must be in \[0, 1\], got 2"),
            ({"expand_ratio": True}, TypeError, "expand_ratio must be a number, got True"),
        ),
        _WRONG_2D,
        quantized.QuantizableFusedMBConv,
    ),
    LayerSpec(
        tnn.ConvNeXtBlock,
        (
            Sample(
                "default",
                {"dim": 3, "layer_scale": 0.5},
                (2, 3, 8, 9),
                ref.convnext_block,
                islands=(nn.LayerNorm, nn.GELU),
            ),
            Sample(
                "small relu",
                {"dim": 4, "layer_scale": 1.0, "kernel_size": 3, "expansion": 2, "activation_layer": nn.ReLU}
                | {"stochastic_depth": 0.2},
                (2, 4, 5, 7),
                partial(ref.convnext_block, activation=ref.relu),
                is_random=True,
                islands=(nn.LayerNorm,),
            ),
        ),
        (
            ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
            ({"expansion": 0}, ValueError, "expansion must be at least 1, got 0"),
            ({"kernel_size": 6}, ValueError, "kernel_size must be odd, got 6"),
            ({"norm_layer": "ln"}, TypeError, "norm_layer must be a constructor.*'ln'"),
            ({"activation_layer": "relu"}, *_STRING),
        ),
        _WRONG_2D,
        quantized.QuantizableConvNeXtBlock,
    ),
)
