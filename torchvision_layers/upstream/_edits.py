"""Small changes to the text of files: an import, an entry of a list, a line of a page."""

import ast
import re
import sys
from typing import NamedTuple

__all__ = ["Import", "bound_names", "with_entry", "with_import", "with_page_entry"]

#: Of lines, as in torchvision.
WIDTH = 120


class Import(NamedTuple):
    """``import module``, or ``from module import name``; ``module`` begins with dots where it is relative.

    Either may end in ``as alias``.
    """

    module: str
    name: str | None = None

    @property
    def bound(self) -> str:
        last, _, alias = (self.name or self.module).partition(" as ")
        return alias or (last if self.name else last.partition(".")[0])


def bound_names(text: str) -> set[str]:
    """Names that the top level of a file binds."""
    found: set[str] = set()
    for statement in ast.parse(text).body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            found.add(statement.name)
        else:
            found |= {
                node.id
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
    return found


def with_import(text: str, new: Import) -> str:
    """The text with one more import, in its place among the others, which are sorted as usort sorts them."""
    lines = text.splitlines(keepends=True)
    imports = [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in imports:
        module, names = _named(node)
        if module == new.module and (new.name in names if new.name else isinstance(node, ast.Import)):
            return text
    for node in imports:
        module, names = _named(node)
        if new.name and isinstance(node, ast.ImportFrom) and module == new.module:
            lines[node.lineno - 1 : node.end_lineno] = [render_import(module, [*names, new.name])]
            return "".join(lines)
    line = f"import {new.module}\n" if new.name is None else render_import(new.module, [new.name])
    if not imports:
        return f"{line}\n\n{text}"
    group = [node for node in imports if _group(_named(node)[0]) == _group(new.module)]
    before = [node for node in group if _order(node) < (new.name is not None, new.module.lower())]
    if before:
        lines.insert(before[-1].end_lineno or 0, line)
    elif group:
        lines.insert(group[0].lineno - 1, line)
    else:
        earlier = [node for node in imports if _group(_named(node)[0]) < _group(new.module)]
        if earlier:
            lines.insert(earlier[-1].end_lineno or 0, f"\n{line}")
        else:
            lines.insert(imports[0].lineno - 1, f"{line}\n")
    return "".join(lines)


def render_import(module: str, names: list[str]) -> str:
    """An import of names on one line, or on one line each where that is too long."""
    ordered = sorted(set(names), key=str.lower)
    line = f"from {module} import {', '.join(ordered)}\n"
    if len(line) <= WIDTH + 1:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")\n"


def _named(node: ast.Import | ast.ImportFrom) -> tuple[str, list[str]]:
    names = [f"{alias.name} as {alias.asname}" if alias.asname else alias.name for alias in node.names]
    if isinstance(node, ast.Import):
        return names[0], []
    return "." * node.level + (node.module or ""), names


def _order(node: ast.Import | ast.ImportFrom) -> tuple[bool, str]:
    return isinstance(node, ast.ImportFrom), _named(node)[0].lower()


def _group(module: str) -> int:
    """The standard library, packages, what is relative."""
    if module.startswith("."):
        return 2
    return 0 if module.partition(".")[0] in sys.stdlib_module_names else 1


def with_entry(text: str, name: str) -> str:
    """The text with ``name`` at the end of its ``__all__``, a list with an entry on each line.

    Errors: ``ValueError`` where there is no such list.
    """
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            lines = text.splitlines(keepends=True)
            if not isinstance(node.value, ast.List) or lines[(node.end_lineno or 0) - 1].strip() != "]":
                break
            lines.insert((node.end_lineno or 0) - 1, f'    "{name}",\n')
            return "".join(lines)
    raise ValueError("__all__ must be a list with an entry on each line")


def with_page_entry(text: str, name: str) -> str:
    """The page with ``name`` in the list of classes of its section on layers.

    Errors: ``ValueError`` where there is no such section.
    """
    found = re.search(r"^Layers\n-+\n.*?:template: class\.rst\n\n((?:[ \t]+\w+\n)+)", f"{text}\n", re.M | re.S)
    if found is None:
        raise ValueError("there must be a section 'Layers' with an autosummary by the template class.rst")
    entries = found[1].splitlines(keepends=True)
    if name in (entry.strip() for entry in entries):
        return text
    indent = entries[0][: len(entries[0]) - len(entries[0].lstrip())]
    place = sum(entry.strip().lower() < name.lower() for entry in entries)
    entries.insert(place, f"{indent}{name}\n")
    return text[: found.start(1)] + "".join(entries) + text[found.end(1) :]
