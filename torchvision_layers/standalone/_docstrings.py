"""Docstrings of a file without doors: ``tnn.X`` is ``X``, and examples of what is not there are gone."""

import ast
import re
from collections.abc import Callable, Iterator

__all__ = ["docstrings", "without_doors"]

_DOOR = re.compile(r"\b(tnn|enn)\.(\w+)")
_EXAMPLES = "Examples::"


def docstrings(statement: ast.stmt) -> Iterator[ast.Expr]:
    """The docstring of a statement and those within."""
    for node in ast.walk(statement):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first


def without_doors(lines: list[str], name_of: Callable[[str, str], str | None]) -> list[str | None]:
    """The lines of a docstring, ``None`` for those that go.

    Args:
        lines: as they stand in the source.
        name_of: the name in the file of what a door calls so, or ``None`` for what is not in the file.
    """

    def replaced(found: re.Match[str]) -> str:
        return name_of(found[1], found[2]) or found[0]

    result: list[str | None] = []
    goes, start = False, None
    for line in lines:
        text = line.strip()
        if text == _EXAMPLES:
            start = len(result)
        if text.startswith(">>>"):
            goes = any(name_of(found[1], found[2]) is None for found in _DOOR.finditer(line))
        elif not text or text.endswith('"""'):
            goes = False
        result.append(None if goes else _DOOR.sub(replaced, line))
    if start is not None and not any(line and line.strip().startswith(">>>") for line in result[start:]):
        first = start - 1 if lines[start - 1].strip() == "" else start
        end = next((i for i in range(start + 1, len(lines)) if lines[i].strip().endswith('"""')), len(lines))
        result[first:end] = [None] * (end - first)
    return result
