"""Specifications are complete, as far as rules over the constructor and modules of each layer can tell."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import CHECKS, InvalidInput

from .specs import SPECS, LayerSpec

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)

Rule = Callable[[LayerSpec], bool]


def named(pattern: str) -> Rule:
    """Has an argument whose name matches the pattern."""
    return lambda spec: any(re.search(pattern, name) for name in inspect.signature(spec.cls).parameters)


def keeps_the_size(spec: LayerSpec) -> bool:
    """Chooses the padding itself by default."""
    arguments = inspect.signature(spec.cls).parameters
    return "kernel_size" in arguments and ("padding" not in arguments or arguments["padding"].default is None)


def modules(spec: LayerSpec) -> Iterator[nn.Module]:
    for sample in spec.samples:
        yield from spec.cls(**sample.kwargs).modules()


def has_state(spec: LayerSpec) -> bool:
    return any(module.state_dict() for module in modules(spec))


def needs_pixels(spec: LayerSpec) -> bool:
    """Convolves, pools the image, computes statistics of the batch, or has a step for each window or position."""
    kinds: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.modules.pooling._AdaptiveAvgPoolNd)
    kinds += (nn.modules.batchnorm._BatchNorm, enn.CLayerNorm, enn.PFLayerNorm)
    kinds += (enn.PatchMerging, enn.WindowAttention, enn.PositionEmbedding2d, enn.SinePositionEmbedding2d)
    return any(isinstance(module, kinds) for module in modules(spec))


def always(spec: LayerSpec) -> bool:
    return True


def knows_its_width(spec: LayerSpec) -> bool:
    return has_state(spec) or named("^channels$")(spec)


def divides_the_image(spec: LayerSpec) -> bool:
    """Accepts only multiples of a patch or window. The layers of Swin Transformers pad the image."""
    return named("(patch|window)_size|scale_factor")(spec) and not named("shift_size")(spec)


#: The layers that each kind of invalid input concerns.
RULES: dict[InvalidInput, Rule] = {
    InvalidInput.GROUPS: named("groups"),
    InvalidInput.CHANNELS: named(
        r"channels$|features$|planes$|^(inp|oup|dim)$|(embed|hidden|mlp)_dim$|multiplier|expan|width"
    ),
    InvalidInput.PROBABILITY: named(r"^p$|^drop|stochastic_depth"),
    InvalidInput.BLOCK_SIZE: named("block_size"),
    InvalidInput.RANK: always,
    InvalidInput.WIDTH: knows_its_width,
    InvalidInput.HEADS: named("heads"),
    InvalidInput.EVEN_KERNEL: keeps_the_size,
    InvalidInput.DIVISIBILITY: divides_the_image,
    InvalidInput.CHOICE: named(r"_layer$|activation$|^(mode|padding|bias|dims|version)$|affine|_dim$"),
    InvalidInput.DTYPE: always,
    InvalidInput.RESIDUAL: named("downsample|stochastic_depth"),
    InvalidInput.EPS: named(r"^eps$|layer_scale|init_value"),
    InvalidInput.WINDOW: named("kernel_size|stride|dilation|shift_size|grid_size"),
    InvalidInput.NO_PIXELS: needs_pixels,
    InvalidInput.KEYWORD: always,
}
# Covered by a check of its own.
BY_CHECK = {InvalidInput.KEYWORD: "unknown_keyword"}


def possible(spec: LayerSpec) -> set[InvalidInput]:
    return {kind for kind, holds in RULES.items() if holds(spec)} - BY_CHECK.keys()


def specified(spec: LayerSpec) -> set[InvalidInput]:
    return {bad.kind for bad in [*spec.bad_arguments, *spec.bad_inputs]} - BY_CHECK.keys()


#: Classes of ``torch.nn`` under earlier names.
FROM_TORCH = {"Flatten", "Mish", "Swish"}
STABLE = [name for name in tnn.__all__ if isinstance(getattr(tnn, name), type)]
STAGED = [name for name in enn.__all__ if isinstance(getattr(enn, name), type) and name not in FROM_TORCH]


def test_every_public_layer_has_one_spec() -> None:
    assert Counter(spec.name for spec in SPECS) == Counter([*STABLE, *STAGED])
    assert all(spec.cls is getattr(enn if spec.name in STAGED else tnn, spec.name) for spec in SPECS)


def test_the_package_determines_the_status() -> None:
    assert {spec.name for spec in SPECS if spec.status == "experimental"} == set(STAGED)
    assert {spec.name for spec in SPECS if spec.status == "stable"} == set(STABLE)


def test_every_layer_with_parameters_has_a_twin() -> None:
    """A lazy layer has the twin of its materialized class; the last two accept int8 tensors as they are."""
    stable = [spec for spec in SPECS if spec.status == "stable"]
    without = {spec.cls for spec in stable if spec.twin is None and not issubclass(spec.cls, LazyModuleMixin)}
    rewritten = {tnn.GlobalResponseNorm, tnn.UniversalInvertedBottleneck}
    folded = {tnn.FrozenBatchNorm2d, tnn.SWSConv2d, tnn.WSConv2d}
    assert without == {*rewritten, *folded, tnn.Permute, tnn.StochasticDepth}
    twins = {name for name in quantized.__all__ if name.startswith("Quantizable")}
    # The last is the twin of a folded CoordConv2d, which is not a public layer.
    others = {"QuantizableGraph", "QuantizableLayer", "QuantizableModel", "QuantizablePositionalConv2d"}
    assert {spec.twin.__name__ for spec in SPECS if spec.twin} == twins - others


@each_spec
def test_a_spec_is_complete(spec: LayerSpec) -> None:
    assert spec.shape_strategy is not None
    assert len(spec.bad_arguments) + len(spec.bad_inputs) >= 3
    assert len({sample.id for sample in spec.samples}) == len(spec.samples)
    for sample in spec.samples:
        assert sample.reference is not None, sample.id
        assert sample.reads_mode is not None, sample.id
        assert sample.shape[0] >= 2, sample.id
        assert len(set(sample.shape)) == len(sample.shape), f"{sample.id}: sizes {sample.shape} do not differ pairwise"


@each_spec
def test_each_kind_of_invalid_input_is_specified(spec: LayerSpec) -> None:
    missing, extra = possible(spec) - specified(spec), specified(spec) - possible(spec)
    assert not missing, f"no entry for {sorted(kind.name for kind in missing)}"
    assert not extra, f"no rule matches {sorted(kind.name for kind in extra)}"


@each_spec
def test_entries_are_unique(spec: LayerSpec) -> None:
    entries = Counter(repr(bad) for bad in [*spec.bad_arguments, *spec.bad_inputs])
    assert not [entry for entry, count in entries.items() if count > 1]


def test_every_kind_of_invalid_input_has_a_rule() -> None:
    assert set(RULES) == set(InvalidInput)
    assert set(BY_CHECK.values()) <= {check.id for check in CHECKS}


@each_spec
def test_rules_detect_missing_entries(spec: LayerSpec) -> None:
    """A rule detects a spec without the entries of one kind, for each kind."""
    for kind in specified(spec):
        incomplete = replace(
            spec,
            bad_arguments=[bad for bad in spec.bad_arguments if bad.kind is not kind],
            bad_inputs=[bad for bad in spec.bad_inputs if bad.kind is not kind],
        )
        assert possible(incomplete) - specified(incomplete) == {kind}


class Hypothetical(nn.Module):
    """Has arguments that no layer has yet."""

    def __init__(self, num_heads: int = 1, block_size: int = 3, window_size: int = 7) -> None:
        super().__init__()


def test_rules_for_arguments_that_no_layer_has_yet() -> None:
    kinds = possible(LayerSpec(Hypothetical, SPECS[0].samples[:0]))
    assert kinds == {
        InvalidInput.HEADS,
        InvalidInput.BLOCK_SIZE,
        InvalidInput.DIVISIBILITY,
        InvalidInput.RANK,
        InvalidInput.DTYPE,
    }
