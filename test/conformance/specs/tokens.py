"""Experimental layers of vision transformers."""

from functools import partial

import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as numpy_reference
from .. import token_reference as ref
from . import invalid_inputs, token_shape_strategies

__all__ = ["SPECS"]


def _token_norms(name: str) -> tuple[BadArguments, ...]:
    """Norms over the second dimension, which would be the tokens."""
    return tuple(
        BadArguments(
            InvalidInput.CHOICE,
            {name: norm},
            TypeError,
            f"{name} must normalize the last dimension, as nn.LayerNorm does, got {shown}",
        )
        for norm, shown in (
            (nn.BatchNorm1d, "BatchNorm1d"),
            (partial(nn.GroupNorm, 1), "GroupNorm"),
            (nn.InstanceNorm1d, "InstanceNorm1d"),
        )
    )


def _flags(*names: str) -> tuple[BadArguments, ...]:
    return tuple(
        BadArguments(InvalidInput.CHOICE, {name: "no"}, TypeError, f"{name} must be True or False, got 'no'")
        for name in names
    )


def _tokens(channels: int) -> tuple[BadInput, ...]:
    """Inputs with wrong dimensions or channels for (N, L, channels)."""
    return (
        BadInput(InvalidInput.RANK, (5, channels), ValueError, r"must have 3 dimensions, got 2: shape \[5, "),
        BadInput(InvalidInput.RANK, (2, 3, 5, channels), ValueError, r"must have 3 dimensions, got 4: shape \[2, 3"),
        BadInput(InvalidInput.WIDTH, (2, 5, 1), ValueError, rf"size {channels} in dimension 2, got shape \[2, 5, 1\]"),
        BadInput(InvalidInput.WIDTH, (2, channels, 5), ValueError, f"size {channels} in dimension 2, got shape"),
        *invalid_inputs.no_tensors(),
    )


SPECS = (
    LayerSpec(
        enn.PatchEmbedding,
        (
            Sample(
                "default",
                {"in_channels": 4, "embed_dim": 5, "patch_size": 3},
                (2, 4, 6, 9),
                partial(ref.patch_embedding, stride=3),
                reads_mode=False,
                dynamic_dims=(0,),
            ),
            Sample(
                "overlapping with norm",
                {"in_channels": 4, "embed_dim": 5, "patch_size": 3, "stride": 2, "padding": 1, "bias": False}
                | {"norm_layer": nn.LayerNorm},
                (2, 4, 7, 10),
                partial(ref.patch_embedding, stride=2, padding=1, norm=True),
                reads_mode=False,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "embed_dim"),
            *invalid_inputs.numbers("patch_size", "stride"),
            BadArguments(InvalidInput.WINDOW, {"stride": 4}, ValueError, "stride must be at most patch_size=3.*got 4"),
            BadArguments(InvalidInput.WINDOW, {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
            BadArguments(
                InvalidInput.WINDOW, {"padding": 3}, ValueError, "padding must be less than patch_size=3, got 3"
            ),
            *_flags("bias"),
            *invalid_inputs.norms(5),
            *_token_norms("norm_layer"),
        ),
        (
            *invalid_inputs.shapes(4, (6, 9)),
            *invalid_inputs.types_of_torch((2, 4, 6, 9)),
            BadInput(
                InvalidInput.DIVISIBILITY,
                (2, 4, 7, 9),
                ValueError,
                "input must have a height that is a multiple of patch_size=3, got 7: resize or pad the images",
            ),
            BadInput(InvalidInput.DIVISIBILITY, (2, 4, 6, 8), ValueError, "width that is a multiple.*=3, got 8"),
            BadInput(InvalidInput.DIVISIBILITY, (2, 4, 6, 2), ValueError, "width that is a multiple.*=3, got 2"),
            BadInput(
                InvalidInput.DIVISIBILITY,
                (2, 4, 8, 9),
                ValueError,
                "height that patches of 3 pixels with stride=2 and padding=0 cover, got 8",
                {"stride": 2},
            ),
            BadInput(InvalidInput.NO_PIXELS, (2, 4, 0, 9), ValueError, "height that is a multiple.*=3, got 0"),
        ),
        shape_strategy=token_shape_strategies.patch_embedding(),
    ),
    LayerSpec(
        enn.MultiHeadSelfAttention,
        (
            Sample(
                "default",
                {"embed_dim": 6, "num_heads": 2},
                (2, 5, 6),
                partial(ref.attention, heads=2),
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
            Sample(
                "norms without biases",
                {"embed_dim": 12, "num_heads": 2, "bias": False, "out_bias": False, "qk_norm_layer": nn.LayerNorm},
                (3, 5, 12),
                partial(ref.attention, heads=2, qk_norm=True),
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
            Sample(
                "dropout",
                {"embed_dim": 6, "num_heads": 2, "dropout": 0.5},
                (2, 5, 6),
                partial(ref.attention, heads=2),
                is_random=True,
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
        ),
        (
            *invalid_inputs.channels("embed_dim", "num_heads"),
            BadArguments(
                InvalidInput.HEADS,
                {"num_heads": 4},
                ValueError,
                "embed_dim must be divisible by num_heads, got 6 and 4",
            ),
            *invalid_inputs.probability("dropout"),
            *_flags("bias", "out_bias"),
            *invalid_inputs.layers("qk_norm_layer"),
            *_token_norms("qk_norm_layer"),
        ),
        (*_tokens(6), *invalid_inputs.types_of_torch((2, 5, 6))),
        shape_strategy=token_shape_strategies.attention(),
    ),
    LayerSpec(
        enn.TransformerEncoderBlock,
        (
            Sample(
                "default",
                {"num_heads": 2, "hidden_dim": 6, "mlp_dim": 10},
                (2, 5, 6),
                partial(ref.encoder_block, heads=2),
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
            Sample(
                "gated with scale",
                {"num_heads": 3, "hidden_dim": 12, "mlp_dim": 10, "layer_scale": 0.1, "mlp_layer": enn.GatedMLP}
                | {"norm_layer": partial(nn.RMSNorm, eps=1e-6)},
                (3, 7, 12),
                partial(ref.encoder_block, heads=3, gated=True),
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
            Sample(
                "dropout and stochastic depth",
                {"num_heads": 2, "hidden_dim": 6, "mlp_dim": 10, "dropout": 0.2, "attention_dropout": 0.3}
                | {"stochastic_depth": 0.4},
                (2, 5, 6),
                partial(ref.encoder_block, heads=2),
                is_random=True,
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
        ),
        (
            *invalid_inputs.channels("num_heads", "hidden_dim", "mlp_dim"),
            BadArguments(
                InvalidInput.HEADS,
                {"num_heads": 4},
                ValueError,
                "hidden_dim must be divisible by num_heads, got 6 and 4",
            ),
            *(
                bad
                for name in ("dropout", "attention_dropout", "stochastic_depth")
                for bad in invalid_inputs.probability(name)
            ),
            *_flags("kept_rows_only"),
            *invalid_inputs.norms(6),
            *_token_norms("norm_layer"),
            *invalid_inputs.layers("attention_layer", "mlp_layer"),
            BadArguments(
                InvalidInput.EPS, {"layer_scale": invalid_inputs.NAN}, ValueError, "layer_scale must be finite, got nan"
            ),
            BadArguments(InvalidInput.EPS, {"layer_scale": "1"}, TypeError, "layer_scale must be a number, got '1'"),
        ),
        (
            *_tokens(6),
            *invalid_inputs.types((2, 5, 6)),
            BadInput(
                InvalidInput.RESIDUAL,
                (2, 5, 6),
                ValueError,
                r"the output of mlp_layer must have the shape of the input \[2, 5, 6\], got \[2, 5, 7\]",
                {"mlp_layer": lambda dim, hidden: tnn.MLP(dim, [hidden[0], 7])},
            ),
            BadInput(
                InvalidInput.RESIDUAL,
                (2, 5, 6),
                ValueError,
                r"the output of attention_layer must have the shape of the input \[2, 5, 6\], got \[2, 5, 1\]",
                {"attention_layer": lambda dim, heads: nn.Linear(dim, 1)},
            ),
        ),
        shape_strategy=token_shape_strategies.encoder_block(),
    ),
    LayerSpec(
        enn.GatedMLP,
        (
            Sample(
                "SwiGLU",
                {"in_channels": 5, "hidden_channels": [7, 3]},
                (4, 2, 5),
                ref.gated_mlp,
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
            Sample(
                "GEGLU",
                {"in_channels": 5, "hidden_channels": (7, 3), "activation_layer": nn.GELU},
                (4, 2, 5),
                partial(ref.gated_mlp, activation=numpy_reference.gelu),
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
            Sample(  # gates up to one: without biases, rare large products leave others too few of the int8 steps
                "GLU without biases",
                {"in_channels": 5, "hidden_channels": (7, 3), "activation_layer": nn.Sigmoid, "bias": False},
                (4, 2, 5),
                partial(ref.gated_mlp, activation=numpy_reference.sigmoid),
                reads_mode=True,
                dynamic_dims=(0, 1),
            ),
            Sample(
                "norm and dropout",
                {"in_channels": 5, "hidden_channels": [7, 3], "norm_layer": nn.LayerNorm, "dropout": 0.5},
                (4, 2, 5),
                partial(ref.gated_mlp, norm=True),
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
                    f"hidden_channels must be two ints, the features between .* got {shown}",
                )
                for hidden, shown in (([7], r"\[7\]"), ([7, 7, 3], r"\[7, 7, 3\]"), (7, "7"), ("73", "'73'"))
            ),
            BadArguments(
                InvalidInput.CHANNELS,
                {"hidden_channels": [0, 3]},
                ValueError,
                "hidden_channels must be at least 1, got 0",
            ),
            *invalid_inputs.probability("dropout"),
            *_flags("bias"),
            *invalid_inputs.layers("activation_layer"),
            *invalid_inputs.norms(7),
            *_token_norms("norm_layer"),
        ),
        (
            BadInput(InvalidInput.WIDTH, (4, 6), ValueError, r"size 5 in dimension -1, got shape \[4, 6\]"),
            BadInput(InvalidInput.WIDTH, (4, 1), ValueError, r"size 5 in dimension -1, got shape \[4, 1\]"),
            BadInput(InvalidInput.RANK, (), ValueError, r"size 5 in dimension -1, got shape \[\]"),
            *invalid_inputs.no_tensors(),
            *invalid_inputs.types_of_torch((4, 5)),
        ),
        shape_strategy=token_shape_strategies.gated_mlp(),
    ),
    LayerSpec(
        enn.ClassifierHead,
        (
            Sample("default", {"in_channels": 6, "num_classes": 3}, (2, 6, 4, 5), ref.classifier_head, reads_mode=True),
            Sample(
                "norm",
                {"in_channels": 6, "num_classes": 3, "norm_layer": nn.LayerNorm, "bias": False},
                (4, 6, 2, 3),
                partial(ref.classifier_head, norm=True),
                reads_mode=True,
            ),
            Sample(
                "vector, dropout",
                {"in_channels": 6, "num_classes": 3, "pool_layer": None, "dropout": 0.5},
                (4, 6),
                partial(ref.classifier_head, pools=False),
                is_random=True,
                reads_mode=True,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "num_classes"),
            *invalid_inputs.probability("dropout"),
            *invalid_inputs.layers("pool_layer"),
            *invalid_inputs.norms(6),
            *_flags("bias"),
        ),
        (
            *invalid_inputs.shapes(6, (4, 5)),
            *invalid_inputs.not_floating((2, 6, 4, 5)),
            BadInput(
                InvalidInput.DTYPE, torch.zeros(2, 6, 4, 5, dtype=torch.float64), RuntimeError, r"[Dd]ouble.*[Ff]loat\b"
            ),
            BadInput(InvalidInput.NO_PIXELS, (2, 6, 0, 5), ValueError, r"at least one pixel, got shape \[2, 6, 0, 5\]"),
            BadInput(
                InvalidInput.CHOICE,
                (2, 6, 4, 5),
                ValueError,
                "pool_layer must return one value for each of 6 channels, got 120",
                {"pool_layer": nn.Identity},
            ),
            BadInput(
                InvalidInput.RANK,
                (2, 5, 6),
                ValueError,
                "input must have 2 dimensions, got 3",
                {"pool_layer": None},
            ),
        ),
        shape_strategy=token_shape_strategies.classifier_head(),
    ),
)
