"""The block of ConvNeXt."""

from functools import partial

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from . import invalid_inputs, shape_strategies

__all__ = ["SPECS"]

SPECS = (
    LayerSpec(
        tnn.ConvNeXtBlock,
        (
            Sample(
                "default",
                {"dim": 3, "layer_scale": 0.5},
                (2, 3, 8, 9),
                ref.convnext_block,
                reads_mode=False,
                islands=(nn.LayerNorm, nn.GELU),
            ),
            Sample(
                "small relu",
                {"dim": 4, "layer_scale": 1.0, "kernel_size": 3, "expansion": 2, "activation_layer": nn.ReLU}
                | {"stochastic_depth": 0.2},
                (2, 4, 5, 7),
                partial(ref.convnext_block, activation=ref.relu),
                is_random=True,
                reads_mode=True,
                islands=(nn.LayerNorm,),
            ),
            Sample(
                "hidden norm",
                {"dim": 3, "layer_scale": None, "kernel_size": 5, "expansion": 2, "hidden_norm_layer": nn.LayerNorm},
                (2, 3, 6, 7),
                ref.convnext_block,
                reads_mode=False,
                islands=(nn.LayerNorm, nn.GELU),
            ),
            Sample(
                "kept rows",
                {"dim": 3, "layer_scale": 0.5, "activation_layer": nn.ReLU}
                | {"stochastic_depth": 0.4, "kept_rows_only": True},
                (2, 3, 8, 9),
                partial(ref.convnext_block, activation=ref.relu),
                is_random=True,
                reads_mode=True,
                islands=(nn.LayerNorm,),
            ),
        ),
        (
            *invalid_inputs.channels("dim", "expansion"),
            *invalid_inputs.numbers("kernel_size"),
            BadArguments(
                InvalidInput.WINDOW, {"kernel_size": (7, 7)}, TypeError, r"kernel_size must be an int, got \(7, 7\)"
            ),
            BadArguments(InvalidInput.EVEN_KERNEL, {"kernel_size": 6}, ValueError, "kernel_size must be odd, got 6"),
            *invalid_inputs.stochastic_depth(),
            *invalid_inputs.norms(3),
            *invalid_inputs.layers("activation_layer", "conv_layer", "hidden_norm_layer"),
            BadArguments(
                InvalidInput.CHOICE,
                {"hidden_norm_layer": nn.LayerNorm(77)},
                ValueError,
                r"hidden_norm_layer has normalized_shape=\(77,\), expected \(12,\)",
            ),
            BadArguments(
                InvalidInput.EPS, {"layer_scale": invalid_inputs.NAN}, ValueError, "layer_scale must be finite, got nan"
            ),
            BadArguments(
                InvalidInput.EPS, {"layer_scale": "small"}, TypeError, "layer_scale must be a number, got 'small'"
            ),
        ),
        (
            *invalid_inputs.shapes(3, (8, 9)),
            *invalid_inputs.types_of_torch((2, 3, 8, 9)),
            BadInput(
                InvalidInput.NO_PIXELS,
                (2, 3, 0, 9),
                RuntimeError,
                "Kernel size can't be greater than actual input size",
            ),
            # One pixel remains, which would broadcast.
            BadInput(
                InvalidInput.RESIDUAL,
                (2, 3, 7, 7),
                ValueError,
                r"conv_layer must have the shape of the input \[2, 3, 7, 7\], got \[2, 3, 1, 1\]",
                {"conv_layer": invalid_inputs.unpadded},
            ),
        ),
        quantized.QuantizableConvNeXtBlock,
        shape_strategies.convnext_block(),
    ),
)
