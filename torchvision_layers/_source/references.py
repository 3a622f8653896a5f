"""The global names that a statement uses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import libcst as cst
from libcst.metadata import Assignment, GlobalScope, Scope

from .module import Module, Statement

__all__ = ["Mentions", "Reference", "find_mentions"]

_BY_NAME = {"attrgetter", "delattr", "getattr", "hasattr", "methodcaller", "setattr"}


@dataclass(frozen=True)
class Reference:
    """A use of a global name, with the attributes read from it: ``a.b.c``."""

    names: tuple[str, ...]
    #: The nodes of ``a``, ``a.b`` and ``a.b.c``.
    nodes: tuple[cst.CSTNode, ...]
    #: The node in the module's tree: the first of ``nodes``, or the string literal that contains them.
    place: cst.CSTNode
    scope: Scope
    #: Whether Python evaluates it when it loads the module.
    is_eager: bool = False
    #: The top-level class that derives from it.
    base_of: str | None = None

    def hides(self, name: str) -> bool:
        """Whether a local variable called ``name`` is visible to this reference."""
        return _is_local(self.scope, name)


@dataclass
class Mentions:
    """The names that a statement uses."""

    references: list[Reference] = field(default_factory=list)
    #: The attributes read from any object.
    attributes: set[str] = field(default_factory=set)
    #: The modules imported inside the statement, each with the node of the import.
    imports: list[tuple[str, cst.CSTNode]] = field(default_factory=list)
    #: The parsed form of each annotation that is a string literal.
    strings: dict[cst.CSTNode, cst.BaseExpression] = field(default_factory=dict)


@lru_cache(maxsize=4096)
def find_mentions(module: Module, statement: Statement, skip: frozenset[cst.CSTNode] = frozenset()) -> Mentions:
    """Finds the names that a top-level statement uses outside of the nodes in ``skip``."""
    visitor = _Visitor(module, statement, skip)
    statement.visit(visitor)
    return visitor.mentions


def _is_local(scope: Scope, name: str) -> bool:
    return any(isinstance(a, Assignment) and not isinstance(a.scope, GlobalScope) for a in scope[name])


class _Visitor(cst.CSTVisitor):
    def __init__(self, module: Module, statement: Statement, skip: frozenset[cst.CSTNode]) -> None:
        super().__init__()
        self.module = module
        self.statement = statement
        self.skip = skip
        self.mentions = Mentions()
        self.string: cst.CSTNode | None = None

    def on_visit(self, node: cst.CSTNode) -> bool:
        if node in self.module.annotations:
            self.string = node
            self.mentions.strings[node] = expression = cst.parse_expression(self.module.annotations[node])
            expression.visit(self)
            self.string = None
            return False
        return node not in self.skip and super().on_visit(node)

    def visit_Import(self, node: cst.Import) -> bool:
        self.mentions.imports += [(alias.evaluated_name, node) for alias in node.names]
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        self.mentions.imports.append((self.module.import_source(node), node))
        return False

    def visit_Call(self, node: cst.Call) -> None:
        function = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
        if isinstance(function, cst.Name) and function.value in _BY_NAME:
            values = [arg.value.evaluated_value for arg in node.args if isinstance(arg.value, cst.SimpleString)]
            self.mentions.attributes.update(map(str, values))

    def visit_Global(self, node: cst.Global) -> bool:
        for item in node.names:
            self._add([item.name], self.module.scopes[self.module.tree])
        return False

    def visit_MatchKeywordElement(self, node: cst.MatchKeywordElement) -> bool:
        node.pattern.visit(self)  # the keyword is an attribute
        return False

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        chain: list[cst.Attribute | cst.Name] = []
        part: cst.BaseExpression = node
        while isinstance(part, cst.Attribute):
            self.mentions.attributes.add(part.attr.value)
            chain.insert(0, part)
            part = part.value
        if not isinstance(part, cst.Name):
            part.visit(self)
        else:
            self._refer([part, *chain])
        return False

    def visit_Name(self, node: cst.Name) -> None:
        self._refer([node])

    def _refer(self, nodes: Sequence[cst.Attribute | cst.Name]) -> None:
        scope = self.module.scopes.get(self.string or nodes[0])
        if scope is not None and not _is_local(scope, _last(nodes[0])):
            self._add(nodes, scope)

    def _add(self, nodes: Sequence[cst.CSTNode], scope: Scope | None) -> None:
        assert scope is not None
        place = self.string or nodes[0]
        path = [place, *self.module.ancestors(place)]
        is_eager = self.string is None and not any(
            (isinstance(parent, (cst.FunctionDef, cst.Lambda)) and child is parent.body)
            or (isinstance(parent, cst.Annotation) and self.module.is_future)
            for child, parent in pairwise(path)
        )
        base_of = None
        if isinstance(self.statement, cst.ClassDef) and path[-2] in self.statement.bases:
            base_of = self.statement.name.value
        names = tuple(map(_last, nodes))
        self.mentions.references.append(Reference(names, tuple(nodes), place, scope, is_eager, base_of))


def _last(node: cst.CSTNode) -> str:
    name = node.attr if isinstance(node, cst.Attribute) else node
    assert isinstance(name, cst.Name)
    return name.value
