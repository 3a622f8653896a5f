"""Rewriting of collected statements: names change, and members that nothing needs are removed."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import cast

import libcst as cst
from libcst import matchers as m

from .collecting import Unit
from .module import Statement
from .sources import Origin

__all__ = ["rewrite"]

_DOCSTRING = m.SimpleStatementLine(body=[m.Expr(m.SaveMatchedNode(m.SimpleString(), "docstring"))])
_BODY = m.IndentedBlock(body=[_DOCSTRING, m.ZeroOrMore()])
_DOCUMENTED = m.ClassDef(body=_BODY) | m.FunctionDef(body=_BODY)


def rewrite(
    unit: Unit, names: Mapping[Origin, str], docstring: Callable[[str], str] = lambda literal: literal
) -> Statement:
    """Returns the statement for the file, with the comments directly above it.

    Args:
        unit: the collected statement.
        names: the name of each origin in the file.
        docstring: maps the literal of a docstring, quotes included, to a new one. Default: no change.
    """
    new: dict[cst.CSTNode, cst.BaseExpression] = {}
    for use in unit.uses:
        name = names[use.origin]
        if use.reference.names[: use.count] != (name,):
            new[use.reference.nodes[use.count - 1]] = cst.Name(name)
    for string, expression in unit.mentions.strings.items():
        code = cst.Module([]).code_for_node(cast(cst.CSTNode, expression.visit(_Rewriter(new))))
        if code != unit.module.annotations[string]:
            new[string] = cst.SimpleString(repr(code))
    if unit.targets:
        targets = {definition.name: names[definition] for definition in unit.targets}
        for string in cast(list[cst.SimpleString], m.findall(unit.statement, m.SimpleString())):
            if string.evaluated_value in targets:
                new[string] = cst.SimpleString(f'"{targets[string.evaluated_value]}"')
    for string in _docstrings(unit.statement):
        if (literal := docstring(string.value)) != string.value:
            new[string] = cst.SimpleString(literal)
    nodes = [node for node in (*new, *unit.omissions) if node in unit.module.parents]
    path = {node for changed in nodes for node in unit.module.ancestors(changed)}
    statement = cast(Statement, unit.statement.visit(_Rewriter(new, unit.omissions, path)))
    return statement.with_changes(leading_lines=_comments(statement.leading_lines))


@lru_cache(maxsize=4096)
def _docstrings(statement: Statement) -> list[cst.SimpleString]:
    return [cast(cst.SimpleString, match["docstring"]) for match in m.extractall(statement, _DOCUMENTED)]


def _comments(lines: Sequence[cst.EmptyLine]) -> list[cst.EmptyLine]:
    """The comments after the last blank line."""
    return [line for i, line in enumerate(lines) if all(other.comment for other in lines[i:])]


class _Rewriter(cst.CSTTransformer):
    def __init__(
        self,
        new: Mapping[cst.CSTNode, cst.BaseExpression],
        omissions: Collection[cst.CSTNode] = (),
        path: Collection[cst.CSTNode] | None = None,
    ) -> None:
        super().__init__()
        self.new = new
        self.omissions = omissions
        self.path = path  # the nodes to visit: visiting all of them takes several times as long

    def on_visit(self, node: cst.CSTNode) -> bool:
        return self.path is None or node in self.path

    def on_leave(
        self, original_node: cst.CSTNodeT, updated_node: cst.CSTNodeT
    ) -> cst.CSTNodeT | cst.RemovalSentinel | cst.FlattenSentinel[cst.CSTNodeT]:
        if original_node in self.omissions:
            return cst.RemoveFromParent()
        if original_node in self.new:
            old = cast(cst.BaseExpression, updated_node)
            return cast(cst.CSTNodeT, self.new[original_node].with_changes(lpar=old.lpar, rpar=old.rpar))
        return super().on_leave(original_node, updated_node)

    def leave_IndentedBlock(
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        if original_node.body[0] not in self.omissions or not updated_node.body:
            return updated_node
        first = cast(Statement, updated_node.body[0])
        return updated_node.with_deep_changes(first, leading_lines=_comments(first.leading_lines))
