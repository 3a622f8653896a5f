"""Pairs with layers and blocks of torchvision."""

from functools import partial

from torch import nn

from .peer import Peer

__all__ = ["PEERS"]

_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
_CONV = (*_CONV, "norm_layer", "activation_layer", "dilation", "inplace", "bias")
_RESIDUAL = ("inplanes", "planes", "stride", "downsample", "groups", "base_width", "dilation", "norm_layer")
_MLP = ("in_channels", "hidden_channels", "norm_layer", "activation_layer", "inplace", "bias", "dropout")
_EVEN = "An even kernel needs ``padding``, because no symmetric padding keeps the size."
_CONFIGURED = "Pass the fields of the configuration as arguments."


def _alike(
    theirs: str, ours: str, same: tuple[str, ...], call: dict[str, object], shape: tuple[int, ...], note: str = ""
) -> Peer:
    """A pair with the same signature."""
    return Peer(theirs, ours, same, call, call, shape, note=note)


_EFFICIENTNET = {
    "cnf.expand_ratio": "``expand_ratio``",
    "cnf.kernel": "``kernel_size``",
    "cnf.stride": "``stride``",
    "cnf.input_channels": "``in_channels``",
    "cnf.out_channels": "``out_channels``",
    "stochastic_depth_prob": "``stochastic_depth``",
}
_SCALES = {
    "cnf.num_layers": "a setting of the model, not of the block",
    "cnf.width_mult": "a setting of the model, not of the block",
    "cnf.depth_mult": "a setting of the model, not of the block",
    "cnf.block": "a setting of the model, not of the block",
}
_EFFICIENTNET_CALL = {
    "cnf.expand_ratio": 3,
    "cnf.kernel": 5,
    "cnf.stride": 2,
    "cnf.input_channels": 8,
    "cnf.out_channels": 16,
    "cnf.num_layers": 1,
    "stochastic_depth_prob": 0.1,
    "norm_layer": partial(nn.BatchNorm2d, eps=1e-3),
}
_EFFICIENTNET_OURS = {
    "expand_ratio": 3,
    "kernel_size": 5,
    "stride": 2,
    "in_channels": 8,
    "out_channels": 16,
    "stochastic_depth": 0.1,
    "norm_layer": partial(nn.BatchNorm2d, eps=1e-3),
}

PEERS = (
    _alike(
        "torchvision.ops.Conv2dNormActivation",
        "torchvision_layers.nn.ConvNormAct",
        _CONV,
        {
            "in_channels": 4,
            "out_channels": 8,
            "kernel_size": 5,
            "stride": 2,
            "padding": 3,
            "groups": 2,
            "norm_layer": partial(nn.GroupNorm, 2),
            "activation_layer": nn.SiLU,
            "dilation": 2,
            "inplace": False,
            "bias": True,
        },
        (2, 4, 12, 11),
        _EVEN,
    ),
    _alike(
        "torchvision.ops.Conv3dNormActivation",
        "torchvision_layers.nn.Conv3dNormAct",
        _CONV,
        {"in_channels": 4, "out_channels": 8, "kernel_size": 5, "stride": 2, "groups": 2, "activation_layer": nn.SiLU},
        (1, 4, 5, 6, 7),
        _EVEN,
    ),
    _alike(
        "torchvision.ops.SqueezeExcitation",
        "torchvision_layers.nn.SqueezeExcitation",
        ("input_channels", "squeeze_channels", "activation", "scale_activation"),
        {"input_channels": 8, "squeeze_channels": 2, "activation": nn.SiLU, "scale_activation": nn.Hardsigmoid},
        (2, 8, 5, 6),
    ),
    _alike(
        "torchvision.ops.MLP",
        "torchvision_layers.nn.MLP",
        _MLP,
        {
            "in_channels": 6,
            "hidden_channels": [8, 4],
            "norm_layer": nn.LayerNorm,
            "activation_layer": nn.GELU,
            "bias": False,
            "dropout": 0.1,
        },
        (2, 3, 6),
    ),
    _alike(
        "torchvision.ops.StochasticDepth",
        "torchvision_layers.nn.StochasticDepth",
        ("p", "mode"),
        {"p": 0.2, "mode": "row"},
        (2, 3),
    ),
    _alike(
        "torchvision.ops.FrozenBatchNorm2d",
        "torchvision_layers.nn.FrozenBatchNorm2d",
        ("num_features", "eps"),
        {"num_features": 6, "eps": 1e-3},
        (2, 6, 4, 5),
    ),
    _alike("torchvision.ops.Permute", "torchvision_layers.nn.Permute", ("dims",), {"dims": [0, 2, 3, 1]}, (2, 3, 4, 5)),
    _alike(
        "torchvision.models.resnet.BasicBlock",
        "torchvision_layers.nn.BasicBlock",
        _RESIDUAL,
        {"inplanes": 8, "planes": 8, "norm_layer": partial(nn.GroupNorm, 2)},
        (2, 8, 6, 5),
        "``downsample`` is created if the shapes of input and output differ and it is ``None``.",
    ),
    _alike(
        "torchvision.models.resnet.Bottleneck",
        "torchvision_layers.nn.Bottleneck",
        _RESIDUAL,
        {"inplanes": 16, "planes": 4, "groups": 2, "base_width": 32, "dilation": 2},
        (2, 16, 6, 5),
        "``downsample`` is created if the shapes of input and output differ and it is ``None``.",
    ),
    _alike(
        "torchvision.models.mobilenetv2.InvertedResidual",
        "torchvision_layers.nn.InvertedResidual",
        ("inp", "oup", "stride", "expand_ratio", "norm_layer"),
        {"inp": 6, "oup": 8, "stride": 2, "expand_ratio": 3, "norm_layer": partial(nn.GroupNorm, 2)},
        (2, 6, 6, 5),
    ),
    Peer(
        "torchvision.models.efficientnet.MBConv",
        "torchvision_layers.nn.MBConv",
        ("norm_layer", "se_layer"),
        _EFFICIENTNET_CALL,
        _EFFICIENTNET_OURS,
        (2, 8, 8, 7),
        renamed=_EFFICIENTNET,
        absent=_SCALES,
        config="torchvision.models.efficientnet.MBConvConfig",
        note=_CONFIGURED,
    ),
    Peer(
        "torchvision.models.efficientnet.FusedMBConv",
        "torchvision_layers.nn.FusedMBConv",
        ("norm_layer",),
        _EFFICIENTNET_CALL,
        _EFFICIENTNET_OURS,
        (2, 8, 8, 7),
        renamed=_EFFICIENTNET,
        absent={name: _SCALES[name] for name in ("cnf.num_layers", "cnf.block")},
        config="torchvision.models.efficientnet.FusedMBConvConfig",
        note=_CONFIGURED,
    ),
    Peer(
        "torchvision.models.convnext.CNBlock",
        "torchvision_layers.nn.ConvNeXtBlock",
        ("dim", "layer_scale", "norm_layer"),
        {"dim": 6, "layer_scale": 0.1, "stochastic_depth_prob": 0.1, "norm_layer": nn.LayerNorm},
        {"dim": 6, "layer_scale": 0.1, "stochastic_depth": 0.1, "norm_layer": nn.LayerNorm},
        (2, 6, 8, 9),
        renamed={"stochastic_depth_prob": "``stochastic_depth``"},
    ),
    Peer(
        "torchvision.models.vision_transformer.EncoderBlock",
        "torchvision_layers.experimental.nn.TransformerEncoderBlock",
        ("num_heads", "hidden_dim", "mlp_dim", "dropout", "attention_dropout", "norm_layer"),
        {"num_heads": 2, "hidden_dim": 8, "mlp_dim": 12, "dropout": 0.1, "attention_dropout": 0.2}
        | {"norm_layer": nn.RMSNorm},
        {"num_heads": 2, "hidden_dim": 8, "mlp_dim": 12, "dropout": 0.1, "attention_dropout": 0.2}
        | {"norm_layer": nn.RMSNorm},
        (2, 5, 8),
        note="Checkpoints load; outputs are equal bit for bit.",
    ),
    Peer(
        "torchvision.models.convnext.LayerNorm2d",
        "torchvision_layers.nn.LayerNorm2d",
        ("eps", "elementwise_affine", "device", "dtype"),
        {"normalized_shape": 6, "eps": 1e-3},
        {"num_channels": 6, "eps": 1e-3},
        (2, 6, 4, 5),
        renamed={"normalized_shape": "``num_channels``"},
        absent={"bias": "always enabled with ``elementwise_affine``"},
        note="``eps`` defaults to 1e-6, the value that ConvNeXt uses.",
    ),
)
