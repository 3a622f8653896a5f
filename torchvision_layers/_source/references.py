"""The global names that a statement uses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import libcst as cst
from libcst.metadata import Assignment, GlobalScope, Scope

from .module import Module, Statement

__all__ = ["Mentions", "Reference", "mentions"]

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
    #: The imports inside the statement.
    imports: list[cst.Import | cst.ImportFrom] = field(default_factory=list)
    #: The parsed form of each annotation that is a string literal.
    strings: dict[cst.CSTNode, cst.BaseExpression] = field(default_factory=dict)


@lru_cache(maxsize=4096)
def mentions(module: Module, statement: Statement, skip: frozenset[cst.CSTNode] = frozenset()) -> Mentions:
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
        self.lazy = 0
        self.base_of: str | None = None
        self.string: cst.CSTNode | None = None

    def on_visit(self, node: cst.CSTNode) -> bool:
        if node in self.module.annotations:
            self.string = node
            self.mentions.strings[node] = expression = cst.parse_expression(self.module.annotations[node])
            expression.visit(self)
            self.string = None
            return False
        return node not in self.skip and super().on_visit(node)

    def visit_FunctionDef_body(self, node: cst.FunctionDef) -> None:
        self.lazy += 1

    def leave_FunctionDef_body(self, node: cst.FunctionDef) -> None:
        self.lazy -= 1

    def visit_Lambda_body(self, node: cst.Lambda) -> None:
        self.lazy += 1

    def leave_Lambda_body(self, node: cst.Lambda) -> None:
        self.lazy -= 1

    def visit_Annotation(self, node: cst.Annotation) -> None:
        self.lazy += self.module.is_future

    def leave_Annotation(self, original_node: cst.Annotation) -> None:
        self.lazy -= self.module.is_future

    def visit_ClassDef_bases(self, node: cst.ClassDef) -> None:
        if node is self.statement:
            self.base_of = node.name.value

    def leave_ClassDef_bases(self, node: cst.ClassDef) -> None:
        self.base_of = None

    def visit_Import(self, node: cst.Import) -> bool:
        self.mentions.imports.append(node)
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        self.mentions.imports.append(node)
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
        is_eager = not self.lazy and self.string is None
        names = tuple(map(_last, nodes))
        place = self.string or nodes[0]
        self.mentions.references.append(Reference(names, tuple(nodes), place, scope, is_eager, self.base_of))


def _last(node: cst.CSTNode) -> str:
    name = node.attr if isinstance(node, cst.Attribute) else node
    assert isinstance(name, cst.Name)
    return name.value
