"""Docstrings in a file without ``tnn``: names lose this prefix, and examples of absent layers are removed."""

import re
from collections.abc import Callable

__all__ = ["adapt_docstring"]

_PREFIXED = re.compile(r"\b(tnn|enn)\.(\w+)")
_EXAMPLES = "Examples::"


def adapt_docstring(text: str, name_of: Callable[[str, str], str | None]) -> str:
    """Adapts a docstring to the file.

    Args:
        text: the docstring's literal in the source.
        name_of: maps a prefix and a name, such as ``"tnn"`` and ``"MLP"``, to the name in the file; ``None`` if it is
            not in the file.
    """

    def replaced(match: re.Match[str]) -> str:
        return name_of(match[1], match[2]) or match[0]

    lines = text.split("\n")
    result: list[str | None] = []
    is_dropped, start = False, None
    for line in lines:
        stripped = line.strip()
        if stripped == _EXAMPLES:
            start = len(result)
        if stripped.startswith(">>>"):
            is_dropped = any(name_of(match[1], match[2]) is None for match in _PREFIXED.finditer(line))
        elif not stripped or stripped.endswith('"""'):
            is_dropped = False
        result.append(None if is_dropped else _PREFIXED.sub(replaced, line))
    if start is not None and not any(line and line.strip().startswith(">>>") for line in result[start:]):
        first = start - 1 if lines[start - 1].strip() == "" else start
        end = next((i for i in range(start + 1, len(lines)) if lines[i].strip().endswith('"""')), len(lines))
        result[first:end] = [None] * (end - first)
    return "\n".join(line for line in result if line is not None)
