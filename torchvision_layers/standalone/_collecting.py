"""Everything that a definition needs, found by following the names in its source."""

import ast
from dataclasses import dataclass, field

from torch import nn

from ._module import Module
from ._references import Found, Reference, references
from ._sources import OURS, Definition, External, Sources
from ._twinning import Twinning

__all__ = ["HOOKS", "Collection", "Unit", "Use", "collect"]

#: Members by which the package alone works on a layer. They are left out, unless something taken along reads them.
HOOKS = {"float_class", "folded"}


@dataclass(frozen=True)
class Use:
    """A reference and what it leads to."""

    reference: Reference
    origin: External | Definition
    #: How many of its names that takes.
    count: int


@dataclass
class Unit:
    """A statement of the top level of a module, without the members of a class that nothing needs."""

    module: Module
    statement: ast.stmt
    #: Members that are left out, by their names.
    pending: dict[str, list[ast.stmt]] = field(default_factory=dict)
    #: Statements in functions that are left out.
    dropped: list[ast.stmt] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    #: What it changes, if it binds nothing.
    changed: set[Definition] = field(default_factory=set)
    found: Found = field(default_factory=Found)

    @property
    def left_out(self) -> list[ast.stmt]:
        return [*self.dropped, *(member for members in self.pending.values() for member in members)]


@dataclass
class Collection:
    """What a file holds."""

    sources: Sources
    twinning: Twinning
    units: dict[tuple[str, int], Unit] = field(default_factory=dict)
    definitions: dict[Definition, list[Unit]] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)
    builtins: set[str] = field(default_factory=set)
    _pending: list[Unit] = field(default_factory=list)

    def add(self, definition: Definition) -> None:
        """Takes a definition along, with all that it needs."""
        self._need(definition)
        while True:
            while self._pending:
                self._scan(self._pending.pop())
            if not self._add_members() and not self._add_changes():
                return

    def _need(self, definition: Definition) -> None:
        if definition in self.definitions:
            return
        module = self.sources.module(definition.module)
        self.definitions[definition] = [self._unit(module, s) for s in module.definitions[definition.name]]

    def _unit(self, module: Module, statement: ast.stmt) -> Unit:
        key = module.name, statement.lineno
        if key not in self.units:
            unit = self.units[key] = Unit(module, statement)
            if isinstance(statement, ast.ClassDef):
                unit.pending = _pending(statement, Definition(module.name, statement.name))
            unit.dropped = [node for node in ast.walk(statement) if isinstance(node, ast.stmt) and _completes(node)]
            self._pending.append(unit)
        return self.units[key]

    def _scan(self, unit: Unit) -> None:
        module = unit.module
        unit.found = references([unit.statement], set(unit.left_out), module.text, module.is_future)
        self.attributes |= unit.found.attributes
        unit.uses = []
        for reference in unit.found.references:
            try:
                resolved = self.sources.resolve(module, reference.names)
                if resolved is None:
                    self.builtins.add(reference.names[0])
                    continue
                origin, count = resolved
                if isinstance(origin, Definition):
                    origin = self.twinning.form_of(origin, module, unit.statement, reference)
            except ValueError as error:
                raise ValueError(f"{error} (line {reference.spans[0].line} of module {module.name})") from error
            unit.uses.append(Use(reference, origin, count))
            if isinstance(origin, Definition):
                self._need(origin)
        for node in unit.found.imports:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
            if is_relative or not all(self.sources.is_given(name) for name in names):
                where = f"line {node.lineno} of module {module.name}"
                raise ValueError(f"an import in a function must be of torch or the standard library, got {where}")

    def _add_members(self) -> bool:
        """Members that are read by now; whether there were any."""
        found = [unit for unit in self.units.values() if unit.pending.keys() & self.attributes]
        for unit in found:
            unit.pending = {name: nodes for name, nodes in unit.pending.items() if name not in self.attributes}
        self._pending += found
        return bool(found)

    def _add_changes(self) -> bool:
        """Statements that change what is taken along; whether there were any."""
        before = len(self.units)
        for module in {unit.module.name: unit.module for unit in self.units.values()}.values():
            for statement, names in module.changes:
                changed = {d for name in names if (d := self._taken(module, name)) is not None}
                if changed and (module.name, statement.lineno) not in self.units:
                    self._unit(module, statement).changed = changed
        return len(self.units) > before

    def _taken(self, module: Module, name: str) -> Definition | None:
        """The definition that a name stands for, if it is taken along."""
        if name not in module.definitions and name not in module.imports:
            return None
        try:
            resolved = self.sources.resolve(module, (name,))
        except ValueError:  # a module, or what the file does without
            return None
        origin = resolved[0] if resolved else None
        return origin if isinstance(origin, Definition) and origin in self.definitions else None


def collect(sources: Sources, twinning: Twinning, definitions: list[Definition]) -> Collection:
    """The definitions and all that they need.

    Errors: ``ValueError`` for a name that cannot be found, or must not be in a file.
    """
    collection = Collection(sources, twinning)
    for definition in definitions:
        collection.add(definition)
    return collection


def _completes(node: ast.stmt) -> bool:
    """Whether a statement is ``self._complete()``, which twins in a file do without."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "_complete"
    )


def _pending(statement: ast.ClassDef, definition: Definition) -> dict[str, list[ast.stmt]]:
    """Members that are taken along only where something reads them.

    Those are the hooks of the package. In a class of ours also private methods, and in one that is no module all: but
    for those that replace one of torch or Python.
    """
    pending: dict[str, list[ast.stmt]] = {}
    value = definition.value
    is_module = isinstance(value, type) and issubclass(value, nn.Module)
    for member in statement.body:
        if isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name):
            name, is_function = member.targets[0].id, False
        elif isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name, is_function = member.name, True
        else:
            continue
        is_dunder = name.startswith("__") and name.endswith("__")
        is_inner = is_function and definition.is_ours and not is_dunder and (name.startswith("_") or not is_module)
        if name in HOOKS or (is_inner and not _replaces(value, name)):
            pending.setdefault(name, []).append(member)
    return pending


def _replaces(value: object, name: str) -> bool:
    """Whether a class outside of ours that ``value`` derives from has this member."""
    classes = value.__mro__[1:] if isinstance(value, type) else ()
    return any(name in vars(cls) for cls in classes if cls.__module__.partition(".")[0] not in (OURS, "torchvision"))
