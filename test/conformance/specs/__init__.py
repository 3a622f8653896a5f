"""One spec per layer, with everything that its checks need."""

from torchvision_layers.testing import LayerSpec, Sample

from . import (
    attention,
    conv,
    convnext,
    inverted,
    lazy,
    linear,
    norms,
    plain,
    residual,
    staged_convs,
    staged_necks,
    staged_norms,
    staged_positions,
    staged_rep_conv,
    staged_windows,
    tokens,
    weight_standardization,
)

__all__ = ["SPECS", "LayerSpec", "Sample"]

# To add a family, add a file here and its name to this list.
FAMILIES = (
    conv,
    weight_standardization,
    lazy,
    linear,
    attention,
    residual,
    inverted,
    convnext,
    norms,
    plain,
    staged_rep_conv,
    staged_convs,
    staged_necks,
    staged_norms,
    staged_positions,
    staged_windows,
    tokens,
)

SPECS: tuple[LayerSpec, ...] = tuple(spec for family in FAMILIES for spec in family.SPECS)
