"""The reference models by name."""

from collections.abc import Callable

from torch import nn

from . import (
    convnext,
    convnext_v2,
    densenet,
    efficientnet,
    efficientnet_lite,
    mobilenet,
    mobilenet_v1,
    mobilenet_v3,
    mobilenet_v4,
    mobileone,
    nf_resnet,
    repvgg,
    resnet,
    sasa_resnet,
    shufflenet,
    swin,
    vit,
)

__all__ = ["MODELS", "build_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "convnext_tiny": convnext.convnext_tiny,
    "convnextv2_atto": convnext_v2.convnextv2_atto,
    "densenet121": densenet.densenet121,
    "efficientnet_b0": efficientnet.efficientnet_b0,
    "efficientnet_lite0": efficientnet_lite.efficientnet_lite0,
    "efficientnet_lite1": efficientnet_lite.efficientnet_lite1,
    "efficientnet_lite2": efficientnet_lite.efficientnet_lite2,
    "efficientnet_lite3": efficientnet_lite.efficientnet_lite3,
    "efficientnet_lite4": efficientnet_lite.efficientnet_lite4,
    "mobilenet_v1": mobilenet_v1.mobilenet_v1,
    "mobilenet_v2": mobilenet.mobilenet_v2,
    "mobilenet_v2_coord": mobilenet.mobilenet_v2_coord,
    "mobilenet_v2_half": mobilenet.mobilenet_v2_half,
    "mobilenet_v3_large": mobilenet_v3.mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3.mobilenet_v3_small,
    "mobilenet_v4_conv_small": mobilenet_v4.mobilenet_v4_conv_small,
    "mobileone_s0": mobileone.mobileone_s0,
    "nf_resnet50": nf_resnet.nf_resnet50,
    "repvgg_a0": repvgg.repvgg_a0,
    "resnet18": resnet.resnet18,
    "resnet26_sasa": sasa_resnet.resnet26_sasa,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet50_gn_ws": resnet.resnet50_gn_ws,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnext50_32x4d": resnet.resnext50_32x4d,
    "se_resnet18": resnet.se_resnet18,
    "se_resnet50": resnet.se_resnet50,
    "shufflenet_v2_x1_0": shufflenet.shufflenet_v2_x1_0,
    "vit_b_16": vit.vit_b_16,
    "vit_b_32": vit.vit_b_32,
    "vit_tiny": vit.vit_tiny,
    "swin_t": swin.swin_t,
    "swin_v2_t": swin.swin_v2_t,
    "wide_resnet50_2": resnet.wide_resnet50_2,
}


def build_model(name: str, num_classes: int, width_mult: float = 1.0, depth_mult: float = 1.0) -> nn.Module:
    """Builds the untrained model ``name``.

    Args:
        name: a key of ``MODELS``.
        num_classes: size of the output.
        width_mult: multiplies the channels of the paper. Default: ``1.0``.
        depth_mult: multiplies the blocks of each stage of the paper, rounded up. Default: ``1.0``.

    Errors: ``ValueError`` for an unknown name, a multiplier that is not positive and finite, or a number of channels
    that a layer of the model cannot have.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    return MODELS[name](num_classes, width_mult, depth_mult)
