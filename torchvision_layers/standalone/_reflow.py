"""Lines broken as ``ruff format`` breaks them, for statements that became longer or shorter."""

import io
import tokenize
from dataclasses import dataclass, field
from keyword import iskeyword

__all__ = ["WIDTH", "reflow"]

WIDTH = 120
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_INDENT = "    "


@dataclass
class _Group:
    """A pair of brackets and what stands between them: items, each a sequence of text and groups."""

    opening: str
    items: list["list[str | _Group]"] = field(default_factory=lambda: [[]])
    #: Whether a comma follows the last item, which asks for a line for each.
    is_open: bool = False

    #: Whether the brackets are those of a call, where a single item needs no comma.
    is_call: bool = False

    @property
    def is_exploded(self) -> bool:
        one_tuple = self.opening == "(" and len(self.items) == 1 and not self.is_call
        return (self.is_open and not one_tuple) or any(_is_exploded(item) for item in self.items)


_Parts = list[str | _Group]


def reflow(lines: list[str], changed: set[int]) -> list[str]:
    """The lines of a piece of code, with the statements anew that have a line whose number (from 0) is in ``changed``.

    Statements with comments inside keep their lines.
    """
    if not changed:
        return lines
    tokens = list(tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline))
    result: list[str] = []
    done, statement = 0, list[tokenize.TokenInfo]()
    for token in tokens:
        if token.type in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER) or (
            token.type == tokenize.COMMENT and not statement
        ):
            continue
        if token.type != tokenize.NEWLINE:
            statement.append(token)
            continue
        first, last = statement[0].start[0] - 1, statement[-1].end[0] - 1
        result += lines[done:first]
        is_plain = all(t.type != tokenize.COMMENT and t.start[0] == t.end[0] for t in statement)
        if is_plain and changed & set(range(first, last + 1)):
            indent = " " * statement[0].start[1]
            is_definition = statement[0].string in ("async", "class", "def")
            result += _broken(_parsed(statement), indent, is_definition=is_definition)
        else:
            result += lines[first : last + 1]
        done, statement = last + 1, []
    return result + lines[done:]


def _parsed(tokens: list[tokenize.TokenInfo]) -> _Parts:
    outer = _Group("")
    stack, before = [outer], tokens[0]
    for token in tokens:
        group = stack[-1]
        is_comma = token.string == "," and group is not outer
        gap = " " if token.start[0] != before.end[0] or token.start[1] > before.end[1] else ""
        if token.string in _CLOSING and token.type == tokenize.OP:
            is_name = before.type == tokenize.NAME and not iskeyword(before.string)
            inner = _Group(token.string, is_call=is_name or before.string in _CLOSING.values())
            group.items[-1] += [gap, inner] if group.items[-1] else [inner]
            stack.append(inner)
        elif token.string in _CLOSING.values() and token.type == tokenize.OP:
            stack.pop()
            if group.items[-1] == [] and len(group.items) > 1:
                group.items.pop()
                group.is_open = True
        elif is_comma:
            group.items.append([])
        elif group.items[-1]:
            group.items[-1].append(gap + token.string)
        else:
            group.items[-1].append(token.string)
        before = token
    return outer.items[0]


def _is_exploded(parts: _Parts) -> bool:
    return any(isinstance(part, _Group) and part.is_exploded for part in parts)


def _flat(parts: _Parts) -> str:
    return "".join(part if isinstance(part, str) else _flat_group(part) for part in parts)


def _flat_group(group: _Group) -> str:
    comma = "," if group.is_open and len(group.items) == 1 else ""
    return f"{group.opening}{', '.join(map(_flat, group.items))}{comma}{_CLOSING[group.opening]}"


def _broken(
    parts: _Parts, indent: str, after: str = "", is_definition: bool = False, is_inner: bool = False
) -> list[str]:
    """The lines of a sequence that stands at an indent, with ``after`` behind it."""
    one = indent + _flat(parts) + after
    if len(one) <= WIDTH and not _is_exploded(parts):
        return [one]
    if is_inner and (pieces := _pieces(parts)):
        lines = [line for piece in pieces for line in _broken(piece, indent, is_inner=True)]
        return [*lines[:-1], lines[-1] + after]
    groups = [i for i, part in enumerate(parts) if isinstance(part, _Group) and any(part.items)]
    if not groups:
        return [one]
    exploded = [i for i in groups if _is_exploded([parts[i]])]
    index = groups[0] if is_definition else (exploded or groups)[-1]
    group = parts[index]
    assert isinstance(group, _Group)
    head = _flat(parts[:index]) + group.opening
    tail = _CLOSING[group.opening] + _flat(parts[index + 1 :]) + after
    within = indent + _INDENT
    body = within + ", ".join(map(_flat, group.items))
    if len(body) <= WIDTH and not group.is_exploded:
        return [indent + head, body, indent + tail]
    lines = [indent + head]
    if len(group.items) == 1 and not group.is_open and _is_alone(group.items[0]):
        lines += _broken(group.items[0], within, is_inner=True)
    else:
        for item in group.items:
            lines += _broken(item, within, ",", is_inner=True)
    return [*lines, indent + tail]


def _pieces(parts: _Parts) -> list[_Parts]:
    """A sequence in brackets, split where its weakest operators are; nothing where it has none."""
    words = [part.strip() if isinstance(part, str) else "" for part in parts]
    places: list[int] = []
    if "for" in words:
        start = words.index("for")
        places = [i for i, word in enumerate(words) if i >= start and word in ("for", "if")]
    elif "else" in words:
        places = [i for i, word in enumerate(words) if word in ("if", "else")]
    else:
        places = [i for i, word in enumerate(words) if word in ("and", "or")]
    if not places or "lambda" in words:
        return []
    pieces = [parts[i:j] for i, j in zip([0, *places], [*places, len(parts)], strict=True)]
    return [[first.lstrip() if isinstance(first, str) else first, *rest] for first, *rest in pieces]


def _is_alone(parts: _Parts) -> bool:
    """Whether an item is a generator or unpacks one, after which there is no comma."""
    return any(isinstance(part, str) and part.split() and part.split()[0] == "for" for part in parts)
