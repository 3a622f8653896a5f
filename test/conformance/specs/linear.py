"""Linear layers and MLPs."""

from functools import partial

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from . import invalid_inputs, shape_strategies

__all__ = ["SPECS"]

_NORM = {"norm_layer": nn.BatchNorm1d}


def _flags() -> tuple[BadArguments, ...]:
    return (
        BadArguments(InvalidInput.CHOICE, {"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
        BadArguments(InvalidInput.CHOICE, {"inplace": 1}, TypeError, "inplace must be True or False, got 1"),
    )


def _inputs() -> tuple[BadInput, ...]:
    """Bad inputs of the first samples, which take five features."""
    return (
        BadInput(InvalidInput.WIDTH, (4, 6), ValueError, r"size 5 in dimension -1, got shape \[4, 6\]"),
        BadInput(InvalidInput.WIDTH, (4, 1), ValueError, r"size 5 in dimension -1, got shape \[4, 1\]"),
        BadInput(InvalidInput.RANK, (), ValueError, r"size 5 in dimension -1, got shape \[\]"),
        # nn.BatchNorm1d would normalize the steps of a sequence, silently if there are as many steps as features.
        BadInput(
            InvalidInput.RANK,
            (4, 3, 5),
            ValueError,
            "must have 2 dimensions with norm_layer=nn.BatchNorm1d, got 3",
            _NORM,
        ),
        BadInput(
            InvalidInput.RANK,
            (4, 7, 5),
            ValueError,
            "must have 2 dimensions with norm_layer=nn.BatchNorm1d, got 3",
            _NORM,
            training=True,
        ),
        BadInput(
            InvalidInput.RANK, (5,), ValueError, "must have 2 dimensions with norm_layer=nn.BatchNorm1d, got 1", _NORM
        ),
        *invalid_inputs.no_tensors(),
        *invalid_inputs.types_of_torch((4, 5)),
        BadInput(
            InvalidInput.NO_PIXELS,
            (1, 5),
            ValueError,
            "Expected more than 1 value per channel when training",
            _NORM,
            training=True,
        ),
    )


SPECS = (
    LayerSpec(
        tnn.LinearDropoutAct,
        (
            Sample("default", {"in_features": 5, "out_features": 3}, (4, 5), ref.linear_dropout_act, reads_mode=True),
            Sample(
                "norm",
                {"in_features": 5, "out_features": 3, "bias": False, "norm_layer": nn.BatchNorm1d},
                (4, 5),
                partial(ref.linear_dropout_act, norm=True),
                reads_mode=True,
            ),
            Sample(
                "sequence",
                {"in_features": 5, "out_features": 3, "activation_layer": None},
                (4, 2, 5),
                partial(ref.linear_dropout_act, activation=ref.identity),
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
            Sample(
                "dropout",
                {"in_features": 5, "out_features": 3, "dropout": 0.5, "activation_layer": nn.ReLU6},
                (4, 5),
                partial(ref.linear_dropout_act, activation=ref.relu6),
                is_random=True,
                reads_mode=True,
            ),
            Sample(
                "dropout in place",
                {"in_features": 5, "out_features": 3, "dropout": 0.5, "inplace": True, "activation_layer": nn.ReLU6},
                (4, 5),
                partial(ref.linear_dropout_act, activation=ref.relu6),
                is_random=True,
                reads_mode=True,
            ),
        ),
        (
            *invalid_inputs.channels("in_features", "out_features"),
            *invalid_inputs.probability("dropout"),
            *invalid_inputs.layers("activation_layer"),
            *invalid_inputs.norms(3),
            *_flags(),
        ),
        _inputs(),
        quantized.QuantizableLinearDropoutAct,
        shape_strategies.linear_dropout_act(),
    ),
    LayerSpec(
        tnn.MLP,
        (
            Sample(
                "default",
                {"in_channels": 5, "hidden_channels": [7, 3]},
                (4, 5),
                partial(ref.mlp, linears=(0, 3)),
                reads_mode=True,
            ),
            Sample(
                "norm gelu",
                {"in_channels": 5, "hidden_channels": (17, 13, 7), "norm_layer": nn.BatchNorm1d}
                | {"activation_layer": nn.GELU, "bias": False},
                (4, 5),
                partial(ref.mlp, linears=(0, 4, 8), norms=(1, 5), activation=ref.gelu),
                reads_mode=True,
                islands=(nn.GELU,),
            ),
            Sample(
                "dropout",
                {"in_channels": 5, "hidden_channels": [7, 3], "dropout": 0.5, "inplace": False},
                (4, 2, 5),
                partial(ref.mlp, linears=(0, 3)),
                is_random=True,
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
            Sample(
                "dropout in place",
                {"in_channels": 5, "hidden_channels": [7, 3], "dropout": 0.5, "inplace": True},
                (4, 2, 5),
                partial(ref.mlp, linears=(0, 3)),
                is_random=True,
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
        ),
        (
            *invalid_inputs.channels("in_channels"),
            *(
                BadArguments(
                    InvalidInput.CHANNELS,
                    {"hidden_channels": hidden},
                    ValueError,
                    f"hidden_channels must be a non-empty sequence of ints, got {shown}",
                )
                for hidden, shown in (([], r"\[\]"), (None, "None"), (7, "7"), ("73", "'73'"))
            ),
            BadArguments(
                InvalidInput.CHANNELS,
                {"hidden_channels": [7, 0]},
                ValueError,
                "hidden_channels must be at least 1, got 0",
            ),
            BadArguments(
                InvalidInput.CHANNELS,
                {"hidden_channels": [7.0]},
                TypeError,
                r"hidden_channels must be an int, got 7\.0",
            ),
            *invalid_inputs.probability("dropout"),
            *invalid_inputs.layers("activation_layer"),
            *invalid_inputs.norms(7),
            *_flags(),
        ),
        _inputs(),
        quantized.QuantizableMLP,
        shape_strategies.mlp(),
    ),
)
