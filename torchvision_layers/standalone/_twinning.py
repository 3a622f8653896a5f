"""Which twin stands in a quantizable file where the model names a float layer."""

import ast
from dataclasses import dataclass, field

from torch import nn

from ._module import Module
from ._references import Reference
from ._sources import OURS, Definition

__all__ = ["Twinning", "twins"]

_HERE = f"{OURS}.standalone."


@dataclass(frozen=True)
class Twinning:
    """Puts twins in the places of float layers; without any, leaves everything as it is."""

    #: The twin of each float class.
    twins: dict[Definition, Definition] = field(default_factory=dict)
    #: Float classes that int8 takes as they are, or runs in float as a whole.
    as_they_are: frozenset[Definition] = frozenset()

    def form_of(self, origin: Definition, module: Module, statement: ast.stmt, reference: Reference) -> Definition:
        """What stands for a class in a file.

        Errors: ``ValueError`` for a layer without a twin, and for a subclass that may hide what its twin adds.
        """
        if not self.twins or (origin.module == module.name and origin.name == getattr(statement, "name", None)):
            return origin
        is_models = module.name.partition(".")[0] != OURS
        if reference.base_of is not None:
            user = Definition(module.name, reference.base_of)
            if not is_models or user in self.twins.values() or origin not in self.twins:
                return origin
            assert isinstance(statement, ast.ClassDef)
            members = [m.name for m in statement.body if isinstance(m, ast.FunctionDef) and m.name != "__init__"]
            if members:
                raise ValueError(
                    f"{reference.base_of} must not have its own {', '.join(members)}, which the twin of {origin.name} "
                    "lacks: write a QuantizableLayer for it"
                )
        if origin in self.twins:
            return self.twins[origin]
        if is_models:
            self.check(origin)
        return origin

    def check(self, origin: Definition) -> None:
        """Raises ``ValueError`` for a layer of ours that has no twin and needs one."""
        value = origin.value
        is_twin = origin in self.twins or origin in self.twins.values() or origin.module.startswith(_HERE)
        if not self.twins or is_twin or origin in self.as_they_are:
            return
        if origin.is_ours and isinstance(value, type) and issubclass(value, nn.Module):
            raise ValueError(f"every layer must have a quantizable twin, {origin.name} has none")


def twins() -> Twinning:
    """The twins of all float layers, those of the loaded models too."""
    from ..quantized import QuantizableLayer
    from ..quantized.layers.base import NEED_NO_TWIN, TWINS

    return Twinning(
        {_definition(float_class): _definition(twin) for float_class, twin in TWINS.items()},
        frozenset(map(_definition, (*NEED_NO_TWIN, QuantizableLayer))),
    )


def _definition(cls: type) -> Definition:
    return Definition(cls.__module__, cls.__qualname__)
