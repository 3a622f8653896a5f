"""Whether the specs say of each layer what the matrix must know, as far as the machine can see it from the layer."""

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
from torchvision_layers.testing import ROWS, Misuse

from .specs import SPECS, LayerSpec

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)

Rule = Callable[[LayerSpec], bool]


def named(pattern: str) -> Rule:
    """Has an argument of such a name."""
    return lambda spec: any(re.search(pattern, name) for name in inspect.signature(spec.cls).parameters)


def keeps_the_size(spec: LayerSpec) -> bool:
    """Chooses the padding itself, unless told otherwise."""
    arguments = inspect.signature(spec.cls).parameters
    return "kernel_size" in arguments and ("padding" not in arguments or arguments["padding"].default is None)


def modules(spec: LayerSpec) -> Iterator[nn.Module]:
    for sample in spec.samples:
        yield from spec.cls(**sample.kwargs).modules()


def has_state(spec: LayerSpec) -> bool:
    return any(module.state_dict() for module in modules(spec))


def needs_pixels(spec: LayerSpec) -> bool:
    """Slides a window, takes a mean over the image, or statistics over the batch."""
    kinds: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.modules.pooling._AdaptiveAvgPoolNd)
    kinds += (nn.modules.batchnorm._BatchNorm, enn.CLayerNorm, enn.PFLayerNorm)
    return any(isinstance(module, kinds) for module in modules(spec))


def always(spec: LayerSpec) -> bool:
    return True


#: Which layers can be misused in which way.
RULES: dict[Misuse, Rule] = {
    Misuse.GROUPS: named("groups"),
    Misuse.CHANNELS: named(r"channels$|features$|planes$|^(inp|oup|dim)$|multiplier|expan|width"),
    Misuse.PROBABILITY: named(r"^p$|^drop|stochastic_depth"),
    Misuse.BLOCK_SIZE: named("block_size"),
    Misuse.RANK: always,
    Misuse.WIDTH: has_state,
    Misuse.HEADS: named("heads"),
    Misuse.EVEN_KERNEL: keeps_the_size,
    Misuse.DIVISIBILITY: named("(patch|window)_size|scale_factor"),
    Misuse.CHOICE: named(r"_layer$|activation$|^(mode|padding|bias|dims)$|affine|_dim$"),
    Misuse.DTYPE: always,
    Misuse.RESIDUAL: named("downsample|stochastic_depth"),
    Misuse.EPS: named(r"^eps$|layer_scale|init_value"),
    Misuse.WINDOW: named("kernel_size|stride|dilation"),
    Misuse.NO_PIXELS: needs_pixels,
    Misuse.KEYWORD: always,
}
# Asked of every layer by a row of its own; an entry may say more.
BY_ROW = {Misuse.KEYWORD: "unknown_keyword"}


def possible(spec: LayerSpec) -> set[Misuse]:
    return {kind for kind, holds in RULES.items() if holds(spec)} - BY_ROW.keys()


def given(spec: LayerSpec) -> set[Misuse]:
    return {bad.kind for bad in [*spec.bad_arguments, *spec.bad_inputs]} - BY_ROW.keys()


#: Of ``torch.nn``, under the names that they had before they came there.
OF_TORCH = {"Flatten", "Mish", "Swish"}


def test_every_public_layer_has_one_spec() -> None:
    staged = [name for name in enn.__all__ if name not in OF_TORCH]
    assert Counter(spec.name for spec in SPECS) == Counter([*tnn.__all__, *staged])
    assert all(spec.cls is getattr(enn if spec.name in staged else tnn, spec.name) for spec in SPECS)


def test_the_room_tells_the_status() -> None:
    assert {spec.name for spec in SPECS if spec.status == "experimental"} == set(enn.__all__) - OF_TORCH
    assert {spec.name for spec in SPECS if spec.status == "stable"} == set(tnn.__all__)


def test_every_layer_with_parameters_has_a_twin() -> None:
    """A lazy layer has the twin of the layer that it becomes."""
    stable = [spec for spec in SPECS if spec.status == "stable"]
    without = {spec.cls for spec in stable if spec.twin is None and not issubclass(spec.cls, LazyModuleMixin)}
    assert without == {tnn.FrozenBatchNorm2d, tnn.Permute, tnn.StochasticDepth}
    twins = {name for name in quantized.__all__ if name.startswith("Quantizable")}
    # The last is the twin of what folding leaves of a CoordConv2d, which is no layer to build with.
    others = {"QuantizableGraph", "QuantizableLayer", "QuantizableModel", "QuantizablePositionalConv2d"}
    assert {spec.twin.__name__ for spec in SPECS if spec.twin} == twins - others


@each_spec
def test_a_spec_leaves_no_row_out(spec: LayerSpec) -> None:
    assert spec.geometries is not None
    assert len(spec.bad_arguments) + len(spec.bad_inputs) >= 3
    assert len({sample.id for sample in spec.samples}) == len(spec.samples)
    for sample in spec.samples:
        assert sample.reference is not None, sample.id
        assert sample.reads_mode is not None, sample.id
        assert sample.shape[0] >= 2, sample.id
        assert len(set(sample.shape)) == len(sample.shape), f"{sample.id}: sizes {sample.shape} do not differ pairwise"


@each_spec
def test_each_kind_of_misuse_has_an_entry(spec: LayerSpec) -> None:
    missing, beside = possible(spec) - given(spec), given(spec) - possible(spec)
    assert not missing, f"no entry for {sorted(kind.name for kind in missing)}"
    assert not beside, f"no rule finds {sorted(kind.name for kind in beside)} in the layer"


@each_spec
def test_no_entry_stands_twice(spec: LayerSpec) -> None:
    entries = Counter(repr(bad) for bad in [*spec.bad_arguments, *spec.bad_inputs])
    assert not [entry for entry, count in entries.items() if count > 1]


def test_every_kind_of_misuse_has_a_rule() -> None:
    assert set(RULES) == set(Misuse)
    assert set(BY_ROW.values()) <= {row.id for row in ROWS}


@each_spec
def test_the_rules_miss_nothing_that_is_left_out(spec: LayerSpec) -> None:
    """A spec without the entries of one kind is found out, for each kind."""
    for kind in given(spec):
        poorer = replace(
            spec,
            bad_arguments=[bad for bad in spec.bad_arguments if bad.kind is not kind],
            bad_inputs=[bad for bad in spec.bad_inputs if bad.kind is not kind],
        )
        assert possible(poorer) - given(poorer) == {kind}


class Fantastic(nn.Module):
    """Has the arguments that no layer here has yet."""

    def __init__(self, num_heads: int = 1, block_size: int = 3, window_size: int = 7) -> None:
        super().__init__()


def test_the_rules_see_what_no_layer_has_yet() -> None:
    found = possible(LayerSpec(Fantastic, SPECS[0].samples[:0]))
    assert found == {Misuse.HEADS, Misuse.BLOCK_SIZE, Misuse.DIVISIBILITY, Misuse.RANK, Misuse.DTYPE}
