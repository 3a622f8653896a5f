"""The names of its module that a piece of code uses, each with the place where it stands."""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ._module import bound_by

__all__ = ["Found", "Reference", "Span", "references"]

_BY_NAME = {"attrgetter", "delattr", "getattr", "hasattr", "methodcaller", "setattr"}


class Span(NamedTuple):
    """A stretch of source: lines from 1, columns in bytes."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class Reference:
    """A name of the module, with the attributes that are read from it: ``a.b.c``."""

    names: tuple[str, ...]
    #: Where each of them ends, counted from the beginning of the first.
    spans: tuple[Span, ...]
    #: Whether it is looked up when the module is loaded.
    is_eager: bool
    #: The class of whose bases it is one.
    base_of: str | None
    #: Names that are bound around it, so that they cannot stand for something of the module.
    hidden: frozenset[str]


@dataclass
class Found:
    """What a piece of code mentions."""

    references: list[Reference] = field(default_factory=list)
    #: Attributes that it reads from anything.
    attributes: set[str] = field(default_factory=set)
    #: Imports inside of functions.
    imports: list[ast.Import | ast.ImportFrom] = field(default_factory=list)
    #: Names that a function declares global.
    globals: set[str] = field(default_factory=set)


@dataclass
class _Scope:
    bound: set[str]
    is_class: bool = False


def references(statements: Iterable[ast.stmt], skip: set[ast.stmt], text: str, is_future: bool) -> Found:
    """What statements of the top level mention, but for the statements to skip."""
    visitor = _Visitor(skip, text.split("\n"), is_future)
    for statement in statements:
        visitor.visit(statement)
    return visitor.found


class _Visitor(ast.NodeVisitor):
    def __init__(self, skip: set[ast.stmt], lines: list[str], is_future: bool) -> None:
        self.skip = skip
        self.lines = lines
        self.is_future = is_future
        self.found = Found()
        self.scopes: list[_Scope] = []
        self.is_eager = True
        self.base_of: str | None = None

    def visit(self, node: ast.AST) -> None:
        if node not in self.skip:
            super().visit(node)

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def _within(self, scope: _Scope, nodes: Iterable[ast.AST], is_eager: bool) -> None:
        before, self.is_eager = self.is_eager, is_eager
        self.scopes.append(scope)
        self._visit_all(nodes)
        self.scopes.pop()
        self.is_eager = before

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._define(node, "def")
        self._visit_all(node.decorator_list)
        args = _arguments(node.args)
        self._visit_all([*node.args.defaults, *node.args.kw_defaults])
        for annotation in [*(arg.annotation for arg in args), node.returns]:
            self._annotation(annotation)
        bound = {arg.arg for arg in args} | set(bound_by(node.body))
        declared = [inner for inner in ast.walk(node) if isinstance(inner, (ast.Global, ast.Nonlocal))]
        self.found.globals |= {name for inner in declared if isinstance(inner, ast.Global) for name in inner.names}
        outer = {name for inner in declared for name in inner.names}
        self._within(_Scope(bound - outer), node.body, False)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_all([*node.args.defaults, *node.args.kw_defaults])
        self._within(_Scope({arg.arg for arg in _arguments(node.args)}), [node.body], False)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._define(node, "class")
        self._visit_all(node.decorator_list)
        self.base_of = None if self.scopes else node.name
        self._visit_all(node.bases)
        self.base_of = None
        self._visit_all(node.keywords)
        self._within(_Scope(set(bound_by(node.body)), is_class=True), node.body, self.is_eager)

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, results: list[ast.expr]
    ) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        targets = {name.id for made in node.generators for name in ast.walk(made.target) if isinstance(name, ast.Name)}
        inner = [*first.ifs, *(part for made in others for part in (made.iter, *made.ifs)), *results]
        self._within(_Scope(targets), inner, self.is_eager)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._comprehension(node, [node.elt])

    def visit_SetComp(self, node: ast.SetComp) -> None:
        self._comprehension(node, [node.elt])

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._comprehension(node, [node.elt])

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehension(node, [node.key, node.value])

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self._annotation(node.annotation)
        self._visit_all([node.value])

    def visit_Import(self, node: ast.Import) -> None:
        self.found.imports.append(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.found.imports.append(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in _BY_NAME:
            self.found.attributes |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain: list[ast.Attribute] = []
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            self.found.attributes.add(root.attr)
            chain.insert(0, root)
            root = root.value
        if isinstance(root, ast.Name):
            self._refer([root, *chain], [root.id, *(link.attr for link in chain)])
        else:
            self.visit(root)

    def visit_Name(self, node: ast.Name) -> None:
        self._refer([node], [node.id])

    def _refer(self, nodes: list[ast.expr], names: list[str], shift: tuple[int, int] = (0, 0)) -> None:
        if self._is_local(names[0]):
            return
        line, column = shift
        first = nodes[0]
        spans = [
            Span(first.lineno + line, first.col_offset + column, end_line + line, end_column + column)
            for end_line, end_column in ((n.end_lineno or n.lineno, n.end_col_offset or 0) for n in nodes)
        ]
        self._add(tuple(names), tuple(spans))

    def _add(self, names: tuple[str, ...], spans: tuple[Span, ...]) -> None:
        hidden = frozenset().union(*(scope.bound for scope in self._visible()))
        self.found.references.append(Reference(names, spans, self.is_eager, self.base_of, hidden))

    def _visible(self) -> list[_Scope]:
        return [scope for scope in self.scopes if not scope.is_class or scope is self.scopes[-1]]

    def _is_local(self, name: str) -> bool:
        return any(name in scope.bound for scope in self._visible())

    def _define(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, keyword: str) -> None:
        if self.scopes:
            return
        found = re.search(rf"\b{keyword}\s+{node.name}\b", self.lines[node.lineno - 1])
        assert found is not None
        end = len(self.lines[node.lineno - 1][: found.end()].encode())
        self._add((node.name,), (Span(node.lineno, end - len(node.name.encode()), node.lineno, end),))

    def _annotation(self, annotation: ast.expr | None) -> None:
        """Names in an annotation, those in strings as well."""
        if annotation is None:
            return
        before, self.is_eager = self.is_eager, self.is_eager and not self.is_future
        self.visit(annotation)
        self.is_eager = False
        nodes = list(ast.walk(annotation))
        strings = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if strings:
            lists = [node for node in nodes if isinstance(node, ast.Subscript) and _last(node.value) == "Literal"]
            literals = [inner for node in lists for inner in ast.walk(node.slice)]
            for string in strings:
                if string not in literals:
                    self._in_string(string, str(string.value))
        self.is_eager = before

    def _in_string(self, node: ast.Constant, text: str) -> None:
        try:
            tree = ast.parse(text, mode="eval")
        except SyntaxError as error:
            raise ValueError(f"line {node.lineno} has an annotation that is no expression: {text!r}") from error
        inside = [inner for part in ast.walk(tree) if isinstance(part, ast.Attribute) for inner in [part.value]]
        for part in ast.walk(tree):
            if isinstance(part, (ast.Name, ast.Attribute)) and part not in inside:
                chain: list[ast.expr] = [part]
                while isinstance(chain[0], ast.Attribute):
                    chain.insert(0, chain[0].value)
                if isinstance(chain[0], ast.Name):
                    names = [chain[0].id, *(link.attr for link in chain[1:] if isinstance(link, ast.Attribute))]
                    self._refer(chain, names, (node.lineno - 1, node.col_offset + 1))


def _arguments(args: ast.arguments) -> list[ast.arg]:
    every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    return [arg for arg in every if arg is not None]


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
