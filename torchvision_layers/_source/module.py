"""The source of a module: which statements define, import or change a name."""

import inspect
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import TypeAlias, cast

import libcst as cst
from libcst import matchers as m
from libcst.helpers import get_absolute_module_from_package_for_import
from libcst.metadata import (
    Assignment,
    ComprehensionScope,
    ImportAssignment,
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    Scope,
    ScopeProvider,
)

__all__ = ["ImportedName", "Module", "Statement", "read"]

Statement: TypeAlias = cst.SimpleStatementLine | cst.BaseCompoundStatement

_TYPE_CHECKING = m.If(test=m.Name("TYPE_CHECKING") | m.Attribute(attr=m.Name("TYPE_CHECKING")))
_IMPORTS = m.SimpleStatementLine(body=[m.ZeroOrMore(), m.Import() | m.ImportFrom(), m.ZeroOrMore()])
# Statements without effect when the module is imported: docstrings, and ``if __name__ == "__main__"``.
_IDLE = m.SimpleStatementLine(body=[m.Expr(m.SimpleString() | m.Ellipsis())]) | m.If(
    test=m.Comparison(left=m.Name("__name__"))
)


@dataclass(frozen=True)
class ImportedName:
    """The source of an imported name: ``from module import name``, or ``import module`` if ``name`` is ``None``."""

    module: str
    name: str | None = None


@dataclass(eq=False)
class Module:
    """The syntax tree of a module, and the effects of its top-level statements."""

    name: str
    #: The package that relative imports start from.
    package: str
    wrapper: MetadataWrapper
    scopes: Mapping[cst.CSTNode, Scope | None]
    parents: Mapping[cst.CSTNode, cst.CSTNode]
    #: The text of each annotation that is a string literal.
    annotations: dict[cst.CSTNode, str]
    #: Statements that bind each name, in source order.
    definitions: dict[str, list[Statement]] = field(default_factory=dict)
    imports: dict[str, list[ImportedName]] = field(default_factory=dict)
    #: Modules in ``from module import *``.
    stars: list[str] = field(default_factory=list)
    #: Statements that change objects bound elsewhere, each with the names of these objects.
    changes: list[tuple[Statement, set[str]]] = field(default_factory=list)
    #: Whether ``from __future__ import annotations`` applies.
    is_future: bool = False

    @property
    def tree(self) -> cst.Module:
        return self.wrapper.module

    def ancestors(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        """The nodes around ``node``, up to a top-level statement."""
        while (node := self.parents[node]) is not self.tree:
            yield node

    def import_source(self, node: cst.ImportFrom) -> str:
        """The absolute name of the module in ``from module import name``."""
        return get_absolute_module_from_package_for_import(self.package, node) or ""

    def place(self, node: cst.CSTNode) -> str:
        """The place of a node, for error messages."""
        return f"line {self.wrapper.resolve(PositionProvider)[node].start.line} of module {self.name}"


def read(runtime: ModuleType) -> Module:
    """Parses the source of a loaded module.

    Errors: ``ValueError`` if the source is missing or cannot be parsed.
    """
    try:
        with tokenize.open(inspect.getsourcefile(runtime) or runtime.__name__) as file:
            return _parsed(runtime.__name__, runtime.__package__ or "", file.read())
    except (OSError, TypeError, SyntaxError, cst.ParserSyntaxError) as error:
        raise ValueError(f"module {runtime.__name__} must have readable source: {error}") from error


@lru_cache(maxsize=256)
def _parsed(name: str, package: str, text: str) -> Module:
    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)  # the parser shares no nodes
    metadata = wrapper.resolve_many([ParentNodeProvider, ScopeProvider])
    scopes = cast(Mapping[cst.CSTNode, Scope | None], metadata[ScopeProvider])
    wrapper.module.visit(_Bindings(scopes))
    accesses = {access.node for scope in set(scopes.values()) if scope is not None for access in scope.accesses}
    strings = [node for node in accesses if isinstance(node, (cst.SimpleString, cst.ConcatenatedString))]
    annotations: dict[cst.CSTNode, str] = {node: str(node.evaluated_value) for node in strings}
    parents = cast(Mapping[cst.CSTNode, cst.CSTNode], metadata[ParentNodeProvider])
    module = Module(name, package, wrapper, scopes, parents, annotations)
    bound = _bound_names(module)
    for statement in module.tree.body:
        _sort(module, statement, bound.get(statement, set()))
    return module


class _Bindings(cst.CSTVisitor):
    """Records bindings that ``ScopeProvider`` misses: those of match patterns, and of ``:=`` in comprehensions."""

    def __init__(self, scopes: Mapping[cst.CSTNode, Scope | None]) -> None:
        self.scopes = scopes

    def _record(self, node: cst.CSTNode, name: cst.BaseExpression | None) -> None:
        scope = self.scopes[node]
        while isinstance(scope, ComprehensionScope):
            scope = scope.parent
        if scope is not None and isinstance(name, cst.Name):
            scope.record_assignment(name.value, name)

    def visit_MatchAs(self, node: cst.MatchAs) -> None:
        self._record(node, node.name)

    def visit_MatchStar(self, node: cst.MatchStar) -> None:
        self._record(node, node.name)

    def visit_MatchMapping(self, node: cst.MatchMapping) -> None:
        self._record(node, node.rest)

    def visit_NamedExpr(self, node: cst.NamedExpr) -> None:
        self._record(node, node.target)


def _bound_names(module: Module) -> dict[Statement, set[str]]:
    """The global names that each top-level statement binds when the module is loaded."""
    scope = module.scopes[module.tree]
    assert scope is not None
    bound: dict[Statement, set[str]] = {}
    for assignment in scope.assignments:
        assert isinstance(assignment, Assignment)
        path = [assignment.node, *module.ancestors(assignment.node)]
        is_in_function = any(isinstance(node, cst.FunctionDef) for node in path[1:])
        is_import = isinstance(assignment, ImportAssignment) and m.matches(
            path[-1], m.SimpleStatementLine() | _TYPE_CHECKING
        )
        if not is_in_function and not is_import:
            bound.setdefault(cast(Statement, path[-1]), set()).add(assignment.name.partition(".")[0])
    return bound


def _sort(module: Module, statement: Statement, bound: set[str]) -> None:
    for node in m.findall(statement, m.Import() | m.ImportFrom()) if _is_import(statement) else []:
        _add_import(module, cast("cst.Import | cst.ImportFrom", node))
    if m.matches(statement, _IDLE) or "__all__" in bound or (_is_import(statement) and not bound):
        return
    for name in bound:
        module.definitions.setdefault(name, []).append(statement)
    is_update = m.matches(statement, m.SimpleStatementLine(body=[m.AugAssign()]))
    is_block = not isinstance(statement, (cst.SimpleStatementLine, cst.FunctionDef, cst.ClassDef))
    if is_update or is_block or not bound:
        module.changes.append((statement, _change_targets(statement)))


def _is_import(statement: Statement) -> bool:
    return m.matches(statement, _IMPORTS | _TYPE_CHECKING)


def _add_import(module: Module, node: cst.Import | cst.ImportFrom) -> None:
    source = module.import_source(node) if isinstance(node, cst.ImportFrom) else ""
    if isinstance(node.names, cst.ImportStar):
        module.stars.append(source)
        return
    for alias in node.names:
        name, bound = alias.evaluated_name, alias.evaluated_alias
        if source == "__future__":
            module.is_future |= name == "annotations"
        elif source:
            module.imports.setdefault(bound or name, []).append(ImportedName(source, name))
        elif bound and "." in name:  # import a.b as c
            parent, _, child = name.rpartition(".")
            module.imports.setdefault(bound, []).append(ImportedName(parent, child))
        else:
            module.imports.setdefault(bound or name.partition(".")[0], []).append(ImportedName(name))


def _change_targets(statement: Statement) -> set[str]:
    """The names of objects that a statement may change: its targets, or every name in it.

    The name can also be a string, as in ``torch.fx.wrap("stochastic_depth")``.
    """
    names: set[str] = set()
    for part in statement.body if isinstance(statement, cst.SimpleStatementLine) else [statement]:
        if not isinstance(part, (cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Del)):
            names |= {name.value for name in m.findall(part, m.Name()) if isinstance(name, cst.Name)}
            strings = [node for node in m.findall(part, m.SimpleString()) if isinstance(node, cst.SimpleString)]
            names |= {str(string.evaluated_value) for string in strings}
            continue
        for target in part.targets if isinstance(part, cst.Assign) else [part]:
            root: cst.CSTNode = target.target
            while isinstance(root, (cst.Attribute, cst.Subscript)):
                root = root.value
            names |= {root.value} if isinstance(root, cst.Name) else set()
    return names
