"""The source of a statement as it stands in a file: names of the file, nothing that is left out."""

import ast
from collections.abc import Callable

from ._collecting import Unit
from ._docstrings import docstrings, without_doors
from ._naming import Key, key_of
from ._reflow import reflow
from ._sources import Definition

__all__ = ["rewritten"]


class _Lines:
    """Lines of a module, of which some change and some go."""

    def __init__(self, text: str) -> None:
        self.lines: list[str | None] = list(text.split("\n"))
        self.changed: set[int] = set()

    def replace(self, line: int, start: int, end: int, old: str, new: str) -> None:
        """Puts ``new`` between two columns, in bytes; those to the right must have been replaced before."""
        coded = (self.lines[line - 1] or "").encode()
        if coded[start:end].decode(errors="replace") != old:
            raise ValueError(f"{old} must stand where Python says, not within an f-string of several lines")
        self.lines[line - 1] = (coded[:start] + new.encode() + coded[end:]).decode()
        self.changed.add(line - 1)

    def remove(self, first: int, last: int) -> None:
        """Lines from 1, with the comments and empty lines above them."""
        while first > 1 and _is_free(self.lines[first - 2]):
            first -= 1
        above = next((line for line in reversed(self.lines[: first - 1]) if line is not None), "")
        while above.rstrip().endswith(":") and last < len(self.lines) and not (self.lines[last] or "").strip():
            last += 1  # what comes next begins the class
        self.lines[first - 1 : last] = [None] * (last - first + 1)


def rewritten(unit: Unit, names: dict[Key, str], name_of: Callable[[str, str], str | None]) -> list[str]:
    """The lines of a statement, with the comments right above it.

    Args:
        unit: the statement.
        names: what everything is called in the file.
        name_of: as for docstrings.
    """
    lines, source = _Lines(unit.module.text), unit.module.text.split("\n")
    for line, start, end, old, new in sorted(_replacements(unit, names), reverse=True):
        lines.replace(line, start, end, old, new)
    for docstring in docstrings(unit.statement):
        first, last = docstring.lineno, docstring.end_lineno or docstring.lineno
        lines.lines[first - 1 : last] = without_doors(source[first - 1 : last], name_of)
    for node in unit.left_out:
        lines.remove(_first_line(node), node.end_lineno or node.lineno)
    first, last = _first_line(unit.statement), unit.statement.end_lineno or unit.statement.lineno
    while first > 1 and source[first - 2].startswith("#"):
        first -= 1
    kept = [number for number in range(first - 1, last) if lines.lines[number] is not None]
    result = [str(lines.lines[number]).rstrip() for number in kept]
    if isinstance(unit.statement, ast.ClassDef) and all(s in unit.left_out for s in unit.statement.body):
        result.append("    pass")
    return reflow(result, {i for i, number in enumerate(kept) if number in lines.changed})


def _replacements(unit: Unit, names: dict[Key, str]) -> set[tuple[int, int, int, str, str]]:
    found: set[tuple[int, int, int, str, str]] = set()
    for use in unit.uses:
        old, new = use.reference.names[: use.count], names[key_of(use.origin)]
        if old != (new,):
            span = use.reference.spans[use.count - 1]
            if span.line != span.end_line:
                raise ValueError(f"{'.'.join(old)} must stand on one line, in module {unit.module.name} it does not")
            found.add((span.line, span.column, span.end_column, ".".join(old), new))
    for definition in unit.changed:  # by a string, as torch.fx.wrap takes one
        old_name = next(iter(_called(unit, definition)), definition.name)
        for node in ast.walk(unit.statement):
            if isinstance(node, ast.Constant) and node.value == old_name != names[definition]:
                end = node.end_col_offset or 0
                found.add((node.lineno, node.col_offset + 1, end - 1, old_name, names[definition]))
    return found


def _called(unit: Unit, definition: Definition) -> list[str]:
    """How the module of the statement calls a definition."""
    bound = [*unit.module.imports, *unit.module.definitions]
    return [name for name in bound if name == definition.name]


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _is_free(line: str | None) -> bool:
    return line is None or not line.strip() or line.lstrip().startswith("#")
