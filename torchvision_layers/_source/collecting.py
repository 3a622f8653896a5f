"""All code that a definition needs, collected by following the names in its source."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import libcst as cst
from libcst import matchers as m
from torch import nn

from .module import Module, Statement
from .references import Mentions, Reference, find_mentions
from .sources import OURS, Definition, Origin, Sources

__all__ = ["Choose", "Collection", "Unit", "Use", "collect"]

# Class members that only this package calls. They are left out unless something in the file reads them.
_HOOKS = {"float_class", "folded"}
_NAME = m.SaveMatchedNode(m.Name(), "name")
_MEMBER = m.FunctionDef(name=_NAME) | m.SimpleStatementLine(body=[m.Assign(targets=[m.AssignTarget(_NAME)])])


@dataclass(frozen=True)
class Use:
    """A reference and its origin."""

    reference: Reference
    origin: Origin
    #: How many of the reference's names lead to the origin.
    count: int

    @property
    def alias(self) -> str:
        return self.reference.names[self.count - 1]

    def path(self, count: int) -> str:
        """The full path of the first ``count`` names."""
        module, name = self.origin.module, self.origin.name
        start = [module, name] if name is not None else [module.partition(".")[0]]
        return ".".join([*start, *self.reference.names[self.count : count]])


@dataclass
class Unit:
    """A top-level statement, except the class members that nothing needs."""

    module: Module
    statement: Statement
    #: The members that nothing needs yet, by name.
    pending: dict[str, list[cst.CSTNode]] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    #: The definitions that it changes, if it binds none itself.
    targets: set[Definition] = field(default_factory=set)
    mentions: Mentions = field(default_factory=Mentions)

    @property
    def index(self) -> int:
        return self.module.tree.body.index(self.statement)

    @property
    def omissions(self) -> frozenset[cst.CSTNode]:
        """The nodes that the file does not have: members that nothing needs, and imports on the same line."""
        line = self.statement.body if isinstance(self.statement, cst.SimpleStatementLine) else []
        imports = [part for part in line if isinstance(part, (cst.Import, cst.ImportFrom))]
        return frozenset([*imports, *(node for nodes in self.pending.values() for node in nodes)])


#: Returns a use with the origin that it has in the file, or raises ``ValueError``.
Choose: TypeAlias = Callable[[Use, Unit], Use]


@dataclass
class Collection:
    """The statements of a file."""

    sources: Sources
    choose: Choose
    units: dict[Statement, Unit] = field(default_factory=dict)
    definitions: dict[Definition, list[Unit]] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)
    builtins: set[str] = field(default_factory=set)
    _unread: list[Unit] = field(default_factory=list)

    def add(self, definition: Definition) -> None:
        """Adds a definition and all code that it needs."""
        self._need(definition)
        while self._unread or self._add_members() or self._add_changes():
            while self._unread:
                self._read(self._unread.pop())

    def _need(self, definition: Definition) -> None:
        if definition not in self.definitions:
            module = self.sources.module(definition.module)
            self.definitions[definition] = [self._unit(module, s) for s in module.definitions[definition.name]]

    def _unit(self, module: Module, statement: Statement) -> Unit:
        if statement not in self.units:
            unit = self.units[statement] = Unit(module, statement)
            if isinstance(statement, cst.ClassDef):
                unit.pending = _pending(statement, Definition(module.name, statement.name.value))
            self._unread.append(unit)
        return self.units[statement]

    def _read(self, unit: Unit) -> None:
        module = unit.module
        unit.mentions = find_mentions(module, unit.statement, unit.omissions)
        self.attributes |= unit.mentions.attributes
        unit.uses = []
        for reference in unit.mentions.references:
            try:
                use = self._use(unit, reference)
            except ValueError as error:
                raise ValueError(f"{error} ({module.place(reference.place)})") from error
            if use is None:
                self.builtins.add(reference.names[0])
                continue
            unit.uses.append(use)
            if isinstance(use.origin, Definition):
                self._need(use.origin)
        for name, node in unit.mentions.imports:
            if not self.sources.is_available(name):
                place = module.place(node)
                raise ValueError(f"a function may import only torch and the standard library, got {name} ({place})")

    def _use(self, unit: Unit, reference: Reference) -> Use | None:
        resolved = self.sources.resolve(unit.module, reference.names)
        return self.choose(Use(reference, *resolved), unit) if resolved else None

    def _add_members(self) -> bool:
        """Adds the members that something reads now; returns whether there are any."""
        units = [unit for unit in self.units.values() if unit.pending.keys() & self.attributes]
        for unit in units:
            unit.pending = {name: nodes for name, nodes in unit.pending.items() if name not in self.attributes}
        self._unread += units
        return bool(units)

    def _add_changes(self) -> bool:
        """Adds the statements that change collected objects; returns whether there are any."""
        before = len(self.units)
        for module in {unit.module.name: unit.module for unit in self.units.values()}.values():
            for statement, names in module.changes:
                targets = {d for name in names if (d := self._target(module, statement, name)) is not None}
                if targets and statement not in self.units:
                    self._unit(module, statement).targets = targets
        return len(self.units) > before

    def _target(self, module: Module, statement: Statement, name: str) -> Definition | None:
        """The definition that a name in a statement refers to, if it is collected."""
        scope = module.scopes[module.tree]
        assert scope is not None
        if name not in module.definitions and name not in module.imports:
            return None
        try:
            use = self._use(Unit(module, statement), Reference((name,), (), statement, scope))
        except ValueError:  # the name of a module, or not allowed in the file
            return None
        return use.origin if use and isinstance(use.origin, Definition) and use.origin in self.definitions else None


def collect(
    sources: Sources, definitions: Iterable[Definition], choose: Choose, attributes: Iterable[str] = ()
) -> Collection:
    """Collects definitions and all code that they need.

    Args:
        sources: resolves names.
        definitions: the definitions to begin with.
        choose: called for each use of a global name.
        attributes: members to keep even if nothing reads them. Default: none.

    Errors: ``ValueError`` if a name has no source, and those of ``choose``.
    """
    collection = Collection(sources, choose, attributes=set(attributes))
    for definition in definitions:
        collection.add(definition)
    return collection


def _pending(statement: cst.ClassDef, definition: Definition) -> dict[str, list[cst.CSTNode]]:
    """The members of a class that are left out unless something reads them.

    These are the hooks of the package. In its own classes they include private methods, and all methods of a class that
    is not a module. Methods that override one of torch or Python are never left out.
    """
    pending: dict[str, list[cst.CSTNode]] = {}
    value = definition.value
    is_module = isinstance(value, type) and issubclass(value, nn.Module)
    for member in statement.body.body:
        match = m.extract(member, _MEMBER)
        if match is None:
            continue
        name, is_method = cast(cst.Name, match["name"]).value, isinstance(member, cst.FunctionDef)
        is_special = name.startswith("__") and name.endswith("__")
        is_inner = is_method and definition.is_ours and not is_special and (name.startswith("_") or not is_module)
        if name in _HOOKS or (is_inner and not _overrides(value, name)):
            pending.setdefault(name, []).append(member)
    return pending


def _overrides(value: object, name: str) -> bool:
    """Whether a base class from outside of this package has the member."""
    classes = value.__mro__[1:] if isinstance(value, type) else ()
    return any(name in vars(cls) for cls in classes if cls.__module__.partition(".")[0] not in (OURS, "torchvision"))
