"""Checks of input sizes inside an ONNX graph, which has no operator for them.

A rule is computed from the sizes as a number, 0 or 1 if it is broken, and the input is reshaped to its own sizes plus
that number. No runtime can reshape to more elements. The node is named after the rule, so that errors quote it.
"""

import ast
import importlib
from collections.abc import Sequence
from typing import Any

__all__ = ["MESSAGE", "add_size_checks"]

#: How the names of the nodes that check sizes begin.
MESSAGE = "inputs must have sizes with "

_BINARY: dict[type[ast.AST], str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Mod: "Mod"}
_COMPARE: dict[type[ast.AST], str] = {
    ast.Eq: "Equal",
    ast.Lt: "Less",
    ast.LtE: "LessOrEqual",
    ast.Gt: "Greater",
    ast.GtE: "GreaterOrEqual",
}
_FUNCTIONS = {"max": "Max", "min": "Min"}
_INT64, _LONGEST_NAME = 7, 300


def add_size_checks(graph: Any, rules: Sequence[str], names: Sequence[str]) -> None:
    """Adds checks to a graph with the inputs ``names``; for the form of rules see :func:`size_rules`.

    Errors: ``RuntimeError`` for a rule with fractions.
    """
    if not rules:
        return
    first = next(value for value in graph.input if value.name == names[0])
    checks = _Nodes(names)
    current, used = first.name, set[str]()
    for i, rule in enumerate(dict.fromkeys(rules)):
        is_broken = checks.add(
            "Cast", [checks.add("Not", [checks.value(ast.parse(rule, mode="eval").body)])], to=_INT64
        )
        sizes = checks.add("Add", [checks.add("Shape", [current]), is_broken])
        name = f"{MESSAGE}{rule}"[:_LONGEST_NAME]
        name = f"{name} ({i})" if name in used else name
        used.add(name)
        current = checks.add("Reshape", [current, sizes], name=name)
    for node in graph.node:
        node.input[:] = [current if name == first.name else name for name in node.input]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, first.name, current)
    nodes = [*checks.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


class _Nodes:
    """Nodes that compute the value of a rule, and the constants that they read."""

    def __init__(self, names: Sequence[str]) -> None:
        self.helper = importlib.import_module("onnx").helper
        self.names = names
        self.nodes: list[Any] = []

    def add(self, operator: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        output = f"size_check_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(operator, inputs, [output], name or output, **attributes))
        return output

    def value(self, tree: ast.expr) -> str:
        """The name of the value of an expression."""
        match tree:
            case ast.Constant(int(number)):
                return self._constant(int(number))
            case ast.Subscript(value, ast.Constant(int(dim))):
                index = value.slice.value if isinstance(value, ast.Subscript) else 0  # type: ignore[attr-defined]
                shape = self.add("Shape", [self.names[index]])
                return self.add("Gather", [shape, self._constant(dim)], axis=0)
            case ast.BinOp(left, ast.FloorDiv(), right):  # Div rounds towards zero
                dividend, divisor = self.value(left), self.value(right)
                rest = self.add("Mod", [dividend, divisor])
                return self.add("Div", [self.add("Sub", [dividend, rest]), divisor])
            case ast.BinOp(left, operator, right) if type(operator) in _BINARY:
                return self.add(_BINARY[type(operator)], [self.value(left), self.value(right)])
            case ast.UnaryOp(ast.USub(), operand):
                return self.add("Neg", [self.value(operand)])
            case ast.UnaryOp(ast.Not(), operand):
                return self.add("Not", [self.value(operand)])
            case ast.BoolOp(operator, values):
                return self._join("And" if isinstance(operator, ast.And) else "Or", [self.value(v) for v in values])
            case ast.Compare(left, operators, others):
                terms = [self.value(item) for item in (left, *others)]
                pairs = zip(operators, terms, terms[1:], strict=False)
                return self._join("And", [self._compare(operator, a, b) for operator, a, b in pairs])
            case ast.Call(ast.Name(name), arguments) if name in _FUNCTIONS:
                return self._join(_FUNCTIONS[name], [self.value(argument) for argument in arguments])
        raise RuntimeError(
            f"the forward depends on its input in a way that an ONNX file cannot check: {ast.unparse(tree)}; use "
            "format='pt2'"
        )

    def _compare(self, operator: ast.cmpop, left: str, right: str) -> str:
        if isinstance(operator, ast.NotEq):
            return self.add("Not", [self.add("Equal", [left, right])])
        return self.add(_COMPARE[type(operator)], [left, right])

    def _join(self, operator: str, values: list[str]) -> str:
        result = values[0]
        for value in values[1:]:
            result = self.add(operator, [result, value])
        return result

    def _constant(self, number: int) -> str:
        return self.add("Constant", [], value_int=number)
