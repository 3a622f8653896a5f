"""The imports of a file, in the order of isort."""

import sys
from collections.abc import Iterable

from ._naming import ImportKey, Key, key_of
from ._reflow import WIDTH
from ._sources import External

__all__ = ["by_kind", "import_lines"]


def by_kind(name: str) -> tuple[int, str]:
    """Sorts constants before classes before the rest."""
    is_constant, is_class = name.isupper() and len(name) > 1, name[:1].isupper()
    return (0 if is_constant else 1 if is_class else 2), name


def import_lines(origins: Iterable[External], names: dict[Key, str], is_future: bool) -> list[str]:
    """The lines that import these names: the standard library first, then torch."""
    straight: set[tuple[str, str]] = set()
    members: dict[str, set[str]] = {}
    renamed: set[tuple[str, str, str]] = set()
    for origin in origins:
        key = key_of(origin)
        name = names[key]
        assert isinstance(key, ImportKey)
        parent, _, child = key.module.rpartition(".") if key.name is None else (key.module, "", key.name)
        if key.is_dotted:
            straight.add((origin.module, ""))
        elif not parent:
            straight.add((child, name))
        elif child == name:
            members.setdefault(parent, set()).add(name)
        else:
            renamed.add((parent, child, name))
    plain = [(module, f"import {module}" + (f" as {name}" if name else "")) for module, name in sorted(straight)]
    joined = [((module, by_kind(min(found, key=by_kind))), _joined(module, found)) for module, found in members.items()]
    joined += [((module, by_kind(name)), [f"from {module} import {name} as {new}"]) for module, name, new in renamed]
    sections = [["from __future__ import annotations"]] if is_future else []
    for is_standard in (True, False):
        section = [line for module, line in plain if _is_standard(module) is is_standard]
        for (module, _), lines in sorted(joined, key=lambda entry: entry[0]):
            if _is_standard(module) is is_standard:
                section += lines
        if section:
            sections.append(section)
    return [line for i, section in enumerate(sections) for line in ([""] if i else []) + section]


def _joined(module: str, found: set[str]) -> list[str]:
    ordered = sorted(found, key=by_kind)
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= WIDTH:
        return [line]
    return [f"from {module} import (", *(f"    {name}," for name in ordered), ")"]


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names
