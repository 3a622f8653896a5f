"""Channel attention."""

from functools import partial

import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from . import invalid_inputs, shape_strategies, staged_shape_strategies

__all__ = ["SPECS"]

SPECS = (
    LayerSpec(
        tnn.SqueezeExcitation,
        (
            Sample(
                "default",
                {"input_channels": 6, "squeeze_channels": 3},
                (2, 6, 7, 9),
                ref.squeeze_excitation,
                reads_mode=False,
            ),
            Sample(
                "mobilenet v3",
                {"input_channels": 6, "squeeze_channels": 2, "scale_activation": nn.Hardsigmoid},
                (3, 6, 5, 4),
                partial(ref.squeeze_excitation, scale_activation=ref.hard_sigmoid),
                reads_mode=False,
            ),
        ),
        (
            *invalid_inputs.channels("input_channels", "squeeze_channels"),
            *invalid_inputs.layers("activation", "scale_activation"),
            BadArguments(
                InvalidInput.CHOICE,
                {"scale_activation": nn.PReLU(4)},
                ValueError,
                "scale_activation has num_parameters=4, expected 6",
            ),
        ),
        (
            *invalid_inputs.shapes(6, (7, 9)),
            *invalid_inputs.not_floating((2, 6, 7, 9)),
            BadInput(
                InvalidInput.DTYPE, torch.zeros(2, 6, 7, 9, dtype=torch.float64), RuntimeError, r"[Dd]ouble.*[Ff]loat\b"
            ),
            BadInput(InvalidInput.NO_PIXELS, (2, 6, 0, 9), ValueError, r"at least one pixel, got shape \[2, 6, 0, 9\]"),
            BadInput(InvalidInput.NO_PIXELS, (2, 6, 7, 0), ValueError, r"at least one pixel, got shape \[2, 6, 7, 0\]"),
        ),
        quantized.QuantizableSqueezeExcitation,
        shape_strategies.squeeze_excitation(),
    ),
    LayerSpec(
        enn.SEBlock,
        (
            Sample(
                "default",
                {"in_channels": 6, "ratio": 3},
                (2, 6, 7, 9),
                partial(ref.squeeze_excitation, activation=ref.silu),
                reads_mode=False,
            ),
            Sample(
                "from the first batch",
                {"ratio": 2, "activation": nn.ReLU},
                (3, 6, 5, 4),
                ref.squeeze_excitation,
                reads_mode=False,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "ratio"),
            BadArguments(
                InvalidInput.CHANNELS,
                {"ratio": 7},
                ValueError,
                "ratio must be at most in_channels=6, got 7",
            ),
            *invalid_inputs.layers("activation"),
        ),
        (
            *invalid_inputs.shapes(6, (7, 9)),
            *invalid_inputs.not_floating((2, 6, 7, 9)),
            BadInput(InvalidInput.NO_PIXELS, (2, 6, 0, 9), ValueError, r"at least one pixel, got shape \[2, 6, 0, 9\]"),
            BadInput(
                InvalidInput.CHANNELS,
                (2, 6, 7, 9),
                ValueError,
                "ratio must be at most in_channels=6, got 7",
                {"in_channels": None, "ratio": 7},
            ),
            BadInput(
                InvalidInput.WIDTH,
                (2, 6, 7, 9),
                ValueError,
                "activation has num_parameters=5, expected 2",
                {"in_channels": None, "activation": nn.PReLU(5)},
            ),
        ),
        shape_strategy=staged_shape_strategies.se_block(),
    ),
)
