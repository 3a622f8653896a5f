"""The source of a layer with all that it needs, in the names and the form of a file of torchvision."""

import ast
import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from .. import nn as tnn
from ..standalone._collecting import Collection as Collected
from ..standalone._collecting import Unit
from ..standalone._docstrings import docstrings
from ..standalone._module import Module, bound_by
from ..standalone._naming import Key, key_of
from ..standalone._ordering import ordered
from ..standalone._rewriting import rewritten
from ..standalone._sources import Definition, External, Sources
from ..standalone._twinning import Twinning
from ._docstrings import for_helper, for_layer
from ._edits import Import

__all__ = ["Part", "Source", "class_of", "definitions_of", "source_of"]

#: Names that a leading underscore alone would make those of something else.
_PRIVATE = {"ConvNormAct": "_Conv2dNormAct"}
_LOG = Import("..utils", "_log_api_usage_once")
#: Modules of ours, which are read once.
_READ: dict[str, Module] = {}
_NOQA = re.compile(r"  # noqa: [\w, ]+(?:  (#.*))?$", re.M)


@dataclass(frozen=True)
class Part:
    """One definition in a file, and the name that it binds."""

    name: str
    text: str


@dataclass(frozen=True)
class Source:
    """What a file needs to hold a layer."""

    imports: tuple[Import, ...]
    helpers: tuple[Part, ...]
    layer: str


class _UpstreamSources(Sources):
    """Definitions, but for those that torchvision has."""

    def __init__(self, layer: type[nn.Module], given: Mapping[Definition, Import]) -> None:
        super().__init__(importlib.import_module(layer.__module__))
        self.given = given
        self.read = _READ

    def resolve(self, module: Module, names: tuple[str, ...]) -> tuple[External | Definition, int] | None:
        found = super().resolve(module, names)
        if found is not None and isinstance(found[0], Definition) and found[0] in self.given:
            source, name = self.given[found[0]]
            return External(source, name, names[0]), found[1]
        return found


def definitions_of(layer: type[nn.Module], given: Mapping[Definition, Import]) -> set[Definition]:
    """What a layer takes along, itself among it."""
    return set(_collected(layer, given, frozenset()).definitions)


def _root(layer: type[nn.Module]) -> Definition:
    return Definition(layer.__module__, layer.__name__)


def _collected(layer: type[nn.Module], given: Mapping[Definition, Import], keep: frozenset[str]) -> Collected:
    collection = Collected(_UpstreamSources(layer, given), Twinning(), attributes=set(keep))
    collection.add(_root(layer))
    return collection


def source_of(layer: type[nn.Module], given: Mapping[Definition, Import], keep: frozenset[str] = frozenset()) -> Source:
    """A layer and its helpers, which get private names.

    Args:
        layer: a stable layer.
        given: what torchvision has, and where.
        keep: methods that helpers keep though this layer does not call them. Default: none.

    Errors: ``ValueError`` where two helpers would get one name, or a source cannot be taken along.
    """
    root = _root(layer)
    collection = _collected(layer, given, keep)
    renamed = {d: _private(d.name) for d in collection.definitions if d != root}
    if len(set(renamed.values())) < len(renamed):
        raise ValueError(f"helpers of {layer.__name__} must have names of their own, got {sorted(renamed.values())}")
    names: dict[Key, str] = {root: root.name}
    names.update(renamed.items())
    externals = {u.origin for unit in collection.units.values() for u in unit.uses if isinstance(u.origin, External)}
    names.update((key_of(origin), origin.alias) for origin in externals)
    others = set(tnn.__all__) - {layer.__name__} - {definition.name for definition in given}
    imports = {_LOG, *map(_import, externals)}
    helpers: list[Part] = []
    text = ""
    for unit in ordered(collection, [root]):
        name = getattr(unit.statement, "name", "")
        if unit.module.name == root.module and name == root.name:
            text = _render(unit, names, layer, others)
        else:
            helpers.append(Part(_private(name) if name else _bound(unit, renamed), _render(unit, names)))
    return Source(tuple(sorted(imports, key=str)), tuple(helpers), text)


def class_of(text: str, name: str) -> ast.ClassDef | None:
    """The class of that name at the top level of a file."""
    return next((n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == name), None)


def _private(name: str) -> str:
    return name if name.startswith("_") else _PRIVATE.get(name, f"_{name}")


def _bound(unit: Unit, renamed: Mapping[Definition, str]) -> str:
    """The name that an assignment binds."""
    names = [name for name in bound_by([unit.statement]) if Definition(unit.module.name, name) in renamed]
    if len(names) != 1:
        where = f"line {unit.statement.lineno} of {unit.module.name}"
        raise ValueError(f"helpers must be classes, functions and assignments of one name, got {where}")
    return renamed[Definition(unit.module.name, names[0])]


def _import(origin: External) -> Import:
    if origin == External("torch.nn", "functional", "F"):
        return Import("torch.nn.functional as F")
    return Import(origin.module, origin.name)


def _render(
    unit: Unit, names: dict[Key, str], layer: type[nn.Module] | None = None, others: Collection[str] = ()
) -> str:
    """The text of a unit in the names of the file; ``others`` are layers that torchvision lacks."""
    text = "\n".join(rewritten(unit, names, lambda door, name: None)) + "\n"
    text = _NOQA.sub(lambda found: f"  {found[1]}" if found[1] else "", text)
    node = next((node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)), None)
    if node is None:
        return text
    lines = text.splitlines()
    if layer is not None:
        place, indent = _after_super(node)
        lines.insert(place, f"{indent}{_LOG.name}(self)")
    docstring = next(docstrings(unit.statement), None)
    first = node.body[0]
    if docstring is not None and isinstance(docstring.value, ast.Constant) and isinstance(first, ast.Expr):
        given = str(docstring.value.value)
        new = for_helper(given) if layer is None else for_layer(given, layer, others)
        quotes = 'r"""' if "\\" in new else '"""'
        lines[first.lineno - 1 : first.end_lineno] = f'    {quotes}{new}"""'.splitlines()
    return "\n".join(lines) + "\n"


def _after_super(node: ast.ClassDef) -> tuple[int, str]:
    """The line behind ``super().__init__`` in a class, and its indentation."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            for statement in method.body:
                if ast.unparse(statement).startswith("super().__init__("):
                    return statement.end_lineno or 0, " " * statement.col_offset
    raise ValueError(f"{node.name} must call super().__init__ in its own __init__")
