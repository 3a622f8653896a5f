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
from ..standalone._module import Module, bound_by
from ..standalone._sources import Definition, External, Sources
from ..standalone._twinning import Twinning
from ._docstrings import for_helper, for_layer
from ._edits import Import

__all__ = ["Part", "Source", "class_of", "source_of"]

#: Names that a leading underscore alone would make those of something else.
_PRIVATE = {"ConvNormAct": "_Conv2dNormAct"}
_LOG = Import("..utils", "_log_api_usage_once")
#: Modules of ours, which are read once.
_READ: dict[str, Module] = {}
_NOQA = re.compile(r"  # noqa: [\w, ]+(?:  (#.*))?$", re.M)


@dataclass(frozen=True)
class Part:
    """One definition in a file, and the names that it binds (none where it is a statement)."""

    name: str
    text: str


@dataclass(frozen=True)
class Source:
    """What a file needs to hold a layer."""

    imports: tuple[Import, ...]
    helpers: tuple[Part, ...]
    layer: str
    #: Everything of this package that it holds.
    definitions: frozenset[Definition]


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


def source_of(layer: type[nn.Module], given: Mapping[Definition, Import], keep: frozenset[str] = frozenset()) -> Source:
    """A layer and its helpers, which get private names.

    Args:
        layer: a stable layer.
        given: what torchvision has, and where.
        keep: methods that helpers keep though this layer does not call them. Default: none.

    Errors: ``ValueError`` where two helpers would get one name, or a source cannot be taken along.
    """
    root = Definition(layer.__module__, layer.__name__)
    collection = Collected(_UpstreamSources(layer, given), Twinning(), attributes=set(keep))
    collection.add(root)
    renamed = {d: _private(d.name) for d in collection.definitions if d != root}
    if len(set(renamed.values())) < len(renamed):
        raise ValueError(f"helpers of {layer.__name__} must have names of their own, got {sorted(renamed.values())}")
    others = set(tnn.__all__) - {layer.__name__} - {definition.name for definition in given}
    imports = {_LOG}
    helpers: list[Part] = []
    text = ""
    for unit in _in_order(collection):
        imports |= {_import(use.origin) for use in unit.uses if isinstance(use.origin, External)}
        name = getattr(unit.statement, "name", "")
        if unit.module.name == root.module and name == root.name:
            text = _render(unit, renamed, layer, others)
        else:
            helpers.append(Part(_private(name) if name else _bound(unit, renamed), _render(unit, renamed, None)))
    return Source(tuple(sorted(imports, key=str)), tuple(helpers), text, frozenset(collection.definitions))


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


def _in_order(collection: Collected) -> list[Unit]:
    """Units so that each stands behind what it uses: by module, and within a module by line."""
    uses: dict[str, set[str]] = {}
    for unit in collection.units.values():
        uses.setdefault(unit.module.name, set()).update(
            use.origin.module for use in unit.uses if isinstance(use.origin, Definition)
        )
    order: list[str] = []

    def visit(module: str) -> None:
        if module not in order:
            for other in sorted(uses[module] - {module}):
                visit(other)
            order.append(module)

    for module in sorted(uses):
        visit(module)
    return sorted(collection.units.values(), key=lambda unit: (order.index(unit.module.name), unit.statement.lineno))


def _render(
    unit: Unit, renamed: Mapping[Definition, str], layer: type[nn.Module] | None, others: Collection[str] = ()
) -> str:
    """The text of a unit with other names, without what is left out; ``others`` are layers that torchvision lacks."""
    lines = [line.encode() for line in unit.module.text.splitlines()]
    statement = unit.statement
    start, end = _start(statement, lines), statement.end_lineno or statement.lineno
    edits: list[tuple[int, int, int, int, str]] = []
    for use in unit.uses:
        if isinstance(use.origin, Definition) and use.origin in renamed:
            span = use.reference.spans[use.count - 1]
            first = use.reference.spans[0]
            edits.append((first.line, first.column, span.end_line, span.end_column, renamed[use.origin]))
    for member in unit.left_out:
        first_line = _start(member, lines)
        while not lines[first_line - 2].strip():
            first_line -= 1
        edits.append(
            (first_line - 1, len(lines[first_line - 2]), member.end_lineno or 0, member.end_col_offset or 0, "")
        )
    if isinstance(statement, ast.ClassDef):
        edits += _docstring(statement, layer, others)
        if layer is not None:
            edits.append(_logging(statement))
    for line, column, end_line, end_column, new in sorted(edits, reverse=True):
        head, tail = lines[line - 1][:column], lines[end_line - 1][end_column:]
        lines[line - 1 : end_line] = [head + new.encode() + tail]
        end -= end_line - line
    text = b"\n".join(lines[start - 1 : end]).decode()
    return _NOQA.sub(lambda found: f"  {found[1]}" if found[1] else "", text) + "\n"


def _start(statement: ast.stmt, lines: list[bytes]) -> int:
    """The first line of a statement, with its decorators and the comments above."""
    line = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
    while line > 1 and lines[line - 2].strip().startswith(b"#"):
        line -= 1
    return line


def _docstring(
    statement: ast.ClassDef, layer: type[nn.Module] | None, others: Collection[str]
) -> list[tuple[int, int, int, int, str]]:
    node = statement.body[0]
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return []
    text = str(node.value.value)
    new = for_helper(text) if layer is None else for_layer(text, layer, others)
    quotes = 'r"""' if "\\" in new else '"""'
    return [(node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0, f'{quotes}{new}"""')]


def _logging(statement: ast.ClassDef) -> tuple[int, int, int, int, str]:
    """The call that torchvision counts uses of a layer with, behind that of ``super().__init__``."""
    for method in statement.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            for node in method.body:
                if ast.unparse(node).startswith("super().__init__("):
                    place = node.end_lineno or 0, node.end_col_offset or 0
                    return (*place, *place, f"\n{' ' * node.col_offset}_log_api_usage_once(self)")
    raise ValueError(f"{statement.name} must call super().__init__ in its own __init__")
