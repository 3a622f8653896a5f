"""Replacements in a file: of names from ``torchvision.ops``, and of layers by their quantizable twins."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import libcst as cst
from torch import nn

from .._source.collecting import Unit, Use
from .._source.references import Reference
from .._source.sources import OURS, Definition, External, Origin, Sources

__all__ = ["BASES", "QUANTIZABLE_MODEL", "TWINS", "Substitutes", "with_twins"]

BASES = f"{OURS}.standalone._bases"
TWINS = f"{OURS}.standalone._twins"
QUANTIZABLE_MODEL = Definition(TWINS, "QuantizableModel")

_OBSERVED = f"{OURS}.quantized.layers.observed"
_SUBSTITUTES: dict[str, Origin] = {
    "torchvision.ops.FrozenBatchNorm2d": Definition(BASES, "FixedStatistics"),
    "torchvision.ops.Permute": Definition(BASES, "Reordering"),
    "torchvision.ops.StochasticDepth": Definition(BASES, "RandomDepth"),
    "torchvision.ops.stochastic_depth": Definition(BASES, "stochastic_depth"),
    f"{_OBSERVED}.Addition": Definition(TWINS, "Addition"),
    f"{_OBSERVED}.DeQuantStub": External("torch.ao.quantization", "DeQuantStub"),
    f"{_OBSERVED}.Multiplication": Definition(TWINS, "Multiplication"),
    f"{_OBSERVED}.QuantStub": External("torch.ao.quantization", "QuantStub"),
    f"{OURS}.quantized.layers.base.QuantizableLayer": Definition(TWINS, "QuantizableLayer"),
}
# The subpackages whose code also works outside of the package.
_PORTABLE = {"_utils", "experimental", "layers", "nn", "standalone"}


@dataclass(frozen=True)
class Substitutes:
    """Chooses the origin that each name has in a file."""

    sources: Sources
    #: The twin of each float class; empty unless the file is quantizable.
    twins: Mapping[Definition, Definition] = field(default_factory=dict)
    #: Classes that need no twin.
    need_no_twin: frozenset[Definition] = frozenset()

    def choose(self, use: Use, unit: Unit) -> Use:
        """Returns a use with the origin that it has in the file.

        Errors: ``ValueError`` if no file can contain the origin.
        """
        is_models = unit.module.name.partition(".")[0] != OURS
        for count in range(use.count, len(use.reference.names) + 1):
            path = use.path(count)
            if path in _SUBSTITUTES and not (is_models and path.startswith("torchvision.")):
                return replace(use, origin=_SUBSTITUTES[path], count=count)
        if isinstance(use.origin, Definition):
            self.check_portable(use.origin)
            return replace(use, origin=self._form_of(use.origin, unit, use.reference, is_models))
        if not self.sources.is_available(use.origin.module):
            path = use.path(len(use.reference.names))
            raise ValueError(f"the model must use only torch and the standard library, got {path}")
        return use

    def check_portable(self, definition: Definition) -> None:
        """Raises ``ValueError`` for a definition whose code needs this package."""
        package = (*definition.module.split("."), "")[1]
        is_portable = package in _PORTABLE or (package == "quantized" and _is_layer(definition))
        if definition.is_ours and not is_portable:
            name = f"{definition.module}.{definition.name}"
            raise ValueError(f"the model must not use {name}, which works only within the package")

    def check_twin(self, definition: Definition) -> None:
        """Raises ``ValueError`` for a layer without the twin that it needs."""
        is_known = definition in {*self.twins, *self.twins.values(), *self.need_no_twin} or definition.module == TWINS
        if self.twins and definition.is_ours and _is_layer(definition) and not is_known:
            raise ValueError(f"every layer must have a quantizable twin, {definition.name} has none")

    def _form_of(self, origin: Definition, unit: Unit, reference: Reference, is_models: bool) -> Definition:
        """The twin of a float layer, unless the code needs the float layer itself, as a base class."""
        statement = unit.statement
        name = statement.name.value if isinstance(statement, (cst.ClassDef, cst.FunctionDef)) else ""
        if origin == Definition(unit.module.name, name):
            return origin
        if reference.base_of is not None and isinstance(statement, cst.ClassDef):
            is_twin = Definition(unit.module.name, reference.base_of) in self.twins.values()
            if not is_models or is_twin or origin not in self.twins:
                return origin
            methods = [node.name.value for node in statement.body.body if isinstance(node, cst.FunctionDef)]
            own = [method for method in methods if method != "__init__"]
            if own:
                raise ValueError(
                    f"{reference.base_of} overrides {', '.join(own)} of {origin.name}, which its twin lacks: "
                    "derive a twin of your own from quantized.QuantizableLayer"
                )
        if is_models:
            self.check_twin(origin)
        return self.twins.get(origin, origin)


def with_twins(sources: Sources) -> Substitutes:
    """Replaces float layers by their quantizable twins, which the package and the loaded models define."""
    from ..quantized import QuantizableLayer
    from ..quantized.layers.base import NEED_NO_TWIN, TWINS

    return Substitutes(
        sources,
        {_definition(float_class): _definition(twin) for float_class, twin in TWINS.items()},
        frozenset(map(_definition, (*NEED_NO_TWIN, QuantizableLayer))),
    )


def _definition(cls: type) -> Definition:
    return Definition(cls.__module__, cls.__qualname__)


def _is_layer(definition: Definition) -> bool:
    value = definition.value
    return isinstance(value, type) and issubclass(value, nn.Module)
