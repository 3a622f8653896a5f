"""Normalization with fixed statistics and over channels, and a learned scale."""

from functools import partial

import torch

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from . import invalid_inputs, shape_strategies

__all__ = ["SPECS"]

SPECS = (
    LayerSpec(
        tnn.FrozenBatchNorm2d,
        (Sample("default", {"num_features": 3}, (2, 3, 6, 7), ref.frozen_batch_norm, reads_mode=True),),
        (*invalid_inputs.channels("num_features"), *invalid_inputs.eps()),
        (*invalid_inputs.shapes(3, (6, 7)), *invalid_inputs.types((2, 3, 6, 7))),
        shape_strategy=shape_strategies.image_norm("num_features"),
    ),
    LayerSpec(
        tnn.LayerNorm2d,
        (
            Sample("default", {"num_channels": 3}, (2, 3, 6, 7), ref.layer_norm_2d, reads_mode=False, is_island=True),
            Sample(
                "plain",
                {"num_channels": 5, "elementwise_affine": False, "eps": 1e-3},
                (2, 5, 6, 7),
                partial(ref.layer_norm_2d, eps=1e-3),
                reads_mode=False,
                is_island=True,
            ),
        ),
        (
            *invalid_inputs.channels("num_channels"),
            *invalid_inputs.eps(),
            BadArguments(
                InvalidInput.CHOICE,
                {"elementwise_affine": "no"},
                TypeError,
                "elementwise_affine must be True or False, got 'no'",
            ),
        ),
        (
            *invalid_inputs.shapes(3, (6, 7)),
            *invalid_inputs.types((2, 3, 6, 7)),
            BadInput(
                InvalidInput.DTYPE,
                torch.zeros(2, 3, 6, 7, dtype=torch.uint8),
                TypeError,
                "input must have a floating-point dtype, got torch.uint8",
                {"elementwise_affine": False},
            ),
        ),
        quantized.QuantizableLayerNorm2d,
        shape_strategies.image_norm("num_channels"),
    ),
    LayerSpec(
        tnn.LayerScale,
        (
            Sample(
                "image", {"dim": 3, "init_value": 0.5}, (2, 3, 6, 7), ref.layer_scale, reads_mode=False, is_island=True
            ),
            Sample(
                "sequence",
                {"dim": 3, "init_value": 0.5, "channels_dim": -1},
                (2, 7, 3),
                partial(ref.layer_scale, axis=-1),
                reads_mode=False,
                dynamic_dims=(0, 1),
                is_island=True,
            ),
        ),
        (
            *invalid_inputs.channels("dim"),
            BadArguments(InvalidInput.CHOICE, {"channels_dim": 2}, ValueError, "channels_dim must be 1 or -1, got 2"),
            BadArguments(InvalidInput.CHOICE, {"channels_dim": 0}, ValueError, "channels_dim must be 1 or -1, got 0"),
            BadArguments(
                InvalidInput.CHOICE, {"channels_dim": 1.0}, TypeError, r"channels_dim must be an int, got 1\.0"
            ),
            BadArguments(
                InvalidInput.EPS, {"init_value": "small"}, TypeError, "init_value must be a number, got 'small'"
            ),
            BadArguments(
                InvalidInput.EPS, {"init_value": invalid_inputs.NAN}, ValueError, "init_value must be finite, got nan"
            ),
        ),
        (
            BadInput(InvalidInput.RANK, (3,), ValueError, r"size 3 in dimension 1, got shape \[3\]"),
            BadInput(InvalidInput.RANK, (), ValueError, r"size 3 in dimension 1, got shape \[\]"),
            BadInput(InvalidInput.WIDTH, (2, 4, 6, 7), ValueError, r"size 3 in dimension 1, got shape \[2, 4, 6, 7\]"),
            BadInput(InvalidInput.WIDTH, (2, 1, 6, 7), ValueError, r"size 3 in dimension 1, got shape \[2, 1, 6, 7\]"),
            BadInput(
                InvalidInput.WIDTH,
                (2, 7, 1),
                ValueError,
                r"size 3 in dimension -1, got shape \[2, 7, 1\]",
                {"channels_dim": -1},
            ),
            *invalid_inputs.no_tensors(),
            *invalid_inputs.types((2, 3, 6, 7)),
        ),
        quantized.QuantizableLayerScale,
        shape_strategies.layer_scale(),
    ),
    LayerSpec(
        tnn.GlobalResponseNorm,
        (
            Sample(
                "channels last",
                {"dim": 5},
                (2, 7, 9, 5),
                ref.global_response_norm,
                reads_mode=False,
                dynamic_dims=(0, 1, 2),
                is_island=True,
            ),
            Sample(
                "channels first",
                {"dim": 4, "channels_dim": 1, "eps": 0.5},
                (2, 4, 6, 7),
                partial(ref.global_response_norm, axis=1, eps=0.5),
                reads_mode=False,
                is_island=True,
            ),
            Sample(
                "tokens",
                {"dim": 5},
                (2, 7, 5),
                ref.global_response_norm,
                reads_mode=False,
                dynamic_dims=(0, 1),
                is_island=True,
            ),
        ),
        (
            *invalid_inputs.channels("dim"),
            *invalid_inputs.eps(),
            BadArguments(InvalidInput.CHOICE, {"channels_dim": 0}, ValueError, "channels_dim must be 1 or -1, got 0"),
            BadArguments(InvalidInput.CHOICE, {"channels_dim": 2}, ValueError, "channels_dim must be 1 or -1, got 2"),
            BadArguments(
                InvalidInput.CHOICE, {"channels_dim": "last"}, TypeError, "channels_dim must be an int, got 'last'"
            ),
        ),
        (
            BadInput(InvalidInput.RANK, (2, 5), ValueError, r"input must have at least 3 dimensions, got 2: shape"),
            BadInput(InvalidInput.WIDTH, (2, 7, 9, 4), ValueError, r"size 5 in dimension -1, got shape \[2, 7, 9, 4\]"),
            BadInput(
                InvalidInput.WIDTH,
                (2, 4, 9, 5),
                ValueError,
                r"size 5 in dimension 1, got shape \[2, 4, 9, 5\]",
                {"channels_dim": 1},
            ),
            *invalid_inputs.no_tensors(),
            *invalid_inputs.types((2, 7, 9, 5)),
        ),
        shape_strategy=shape_strategies.global_response_norm(),
    ),
)
