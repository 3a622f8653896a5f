"""Weights of timm's models for the models of the same name here."""

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["NAMES", "from_timm"]

#: Names in timm.
NAMES = {
    "convnextv2_atto": "convnextv2_atto",
    "mobilenet_v4_conv_small": "mobilenetv4_conv_small",
    "mobileone_s0": "mobileone_s0",
    "repvgg_a0": "repvgg_a0",
}

_CONV_AND_NORM = {r"\.conv\.": ".0.", r"\.bn1?\.": ".1."}
_REP_CONV = {
    r"^head\.fc\.": "classifier.1.",
    r"\.conv_kxk\.(?=conv|bn)": ".convs.0.",
    r"\.conv_kxk\.": ".convs.",
    r"\.(conv_1x1|conv_scale)\.": ".pointwise.",
    **_CONV_AND_NORM,
}
# A block of timm's MobileNetV4 is blocks.STAGE.BLOCK, ours is features.NUMBER with the first layer as number 0.
_BLOCKS = [f"{stage}.{block}" for stage, count in enumerate((2, 2, 6, 6, 1)) for block in range(count)]
#: Patterns in timm's keys, each with what replaces it, in order.
_KEYS: dict[str, dict[str, str]] = {
    "convnextv2_atto": {
        r"^stem\.": "features.0.",
        r"^head\.norm\.": "classifier.0.",
        r"^head\.fc\.": "classifier.2.",
        **{rf"^stages\.{i}\.downsample\.": f"features.{2 * i}." for i in range(4)},
        **{rf"^stages\.{i}\.blocks\.": f"features.{2 * i + 1}." for i in range(4)},
        r"\.conv_dw\.": ".block.0.",
        r"\.norm\.": ".block.2.",
        r"\.mlp\.fc1\.": ".block.3.",
        r"\.mlp\.grn\.": ".block.5.",
        r"\.mlp\.fc2\.": ".block.6.",
    },
    "mobilenet_v4_conv_small": {
        r"^conv_stem\.": "features.0.0.",
        r"^bn1\.": "features.0.1.",
        r"^conv_head\.": "head.0.",
        r"^norm_head\.": "head.1.",
        r"^classifier\.": "classifier.2.",
        **{rf"^blocks\.{re.escape(block)}\.": f"features.{i}." for i, block in enumerate(_BLOCKS, 1)},
        r"\.dw_start\.": ".block.start.",
        r"\.pw_exp\.": ".block.expand.",
        r"\.dw_mid\.": ".block.middle.",
        r"\.pw_proj\.": ".block.project.",
        **_CONV_AND_NORM,
    },
    "mobileone_s0": _REP_CONV,
    "repvgg_a0": _REP_CONV,
}


def from_timm(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of timm's model under the keys of our model ``name``, a key of ``NAMES``.

    The pointwise convolutions of timm's ConvNeXt V2 become the linear layers that compute the same.
    """
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in _KEYS[name].items():
            key = re.sub(pattern, replacement, key)
        is_linear = re.search(r"\.block\.[36]\.weight$", key) is not None
        renamed[key] = value.flatten(1) if is_linear else value
    return renamed
