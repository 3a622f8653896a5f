"""Checks prose against the language rules of CONTRIBUTING.md.

    python tools/prose.py                  # every tracked file
    python tools/prose.py README.md test   # these files, and everything below these folders

In Python the check reads docstrings, comments, other strings of several words and names of tests. In reStructuredText
and Markdown it reads everything except code, and the comments in code. A line that must break a rule carries
``prose: ok``.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["OPENINGS", "WORDS", "Violation", "check", "main"]

#: Words, as regular expressions, and what to write instead.
WORDS = {
    "anew": "again",
    "mend(s|ed|ing)?": "fix",
    "but for": "except",
    "nobody": "name the actor: no caller, you",
    "for who(m|ever)?": "for readers who, for users who",
    "stands?(?!-)": "is, are, appears in",
    "lies?": "is, are",
    "goes": "is, becomes, is passed to",
    "comes? along": "is included",
    "of ours": "our, this package's",
    r"(?<!one\s)(?<!each\s)(?<!some\s)(?<!both\s)(?<!none\s)(?<!all\s)(?<!most\s)of which": "whose, or two sentences",
    "without a word": "silently",
    "a word of": "name the thing itself",
    "may it": "even if it",
    "tells|told": "name the actor: pass, set, state, show",
    "asked": "name the actor: request, call, check",
    "rooms?|doors?|house": "package, module, public API",
    "islands?": "float fallback",
    "rogues?": "known-bad layer, mutant",
    "straight lines?|straighten(s|ed|ing)?": "flattened Sequential",
    "ledger": "promotion tracker",
    "on probation": "experimental",
    "vet(s|ted|ting)?": "allowlist, validate",
}
#: Openings of sentences, as regular expressions, and what to write instead. A question may open with its question word.
OPENINGS = {
    "Of (?!course)": "put the main clause first",
    r"What(ever)? (?![^.!]*\?)": "use a noun as the subject",
    r"Who (?![^.!]*\?)": "name the actor: you, callers, users who",
    r"Where (?![^.!]*\?)": "write if or when",
    "That (a|an|the|it|there|every|each|all|no|two) ": "use a noun as the subject",
}

_SPACE = r"[ \n]+"
_RULES = [
    *(
        (re.compile(rf"\b(?P<words>{words.replace(' ', _SPACE)})\b", re.IGNORECASE), hint)
        for words, hint in WORDS.items()
    ),
    *((re.compile(rf"(?:^|\n|[.!?:;]\s+)(?P<words>{start})"), hint) for start, hint in OPENINGS.items()),
]
_WAY_OUT = "prose: ok"
_PLAIN = {"Makefile", ".yml", ".yaml", ".toml", ".cff"}

# Code within prose: literals, roles, addresses.
_CODE = re.compile(r"``.+?``|(?::[\w:]+:)?`[^`]+`|https?://\S+|\]\([^)]*\)", re.DOTALL)
_CODE_DIRECTIVE = re.compile(
    r"\.\. (code-block|testsetup|math|autosummary|toctree|module|currentmodule|drawing|include)::"
)
_BULLET = re.compile(r"([*+-]|\d+[.)]|#+|>) +|:[^:]+:(?= |$)|\.\.( \w+::)? +")
_QUOTES = re.compile(r"""^[rRbBuUfF]{0,2}["']+|["']+$""")
_COMMENT = re.compile(r"(?:^|\s)#:? *(.*)")

#: Consecutive lines with their numbers.
Paragraph = list[tuple[int, str]]


class Violation(NamedTuple):
    """Words that break a rule, and what to write instead."""

    path: Path
    line: int
    words: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.words!r}: {self.hint}"


def check(path: Path) -> list[Violation]:
    """Violations in a file, in the order of its lines."""
    kind = path.suffix or path.name
    if kind not in {".py", ".rst", ".md", *_PLAIN}:
        return []
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    numbered = list(enumerate(lines, 1))
    if kind == ".py":
        paragraphs = _of_python(text)
    elif kind in _PLAIN:  # a comment is a paragraph of its own, also behind code
        paragraphs = ([(number, part)] for number, line in numbered for part in line.split("#"))
    else:
        paragraphs = _of_markup(numbered)
    violations = {
        Violation(path, number, words, hint)
        for paragraph in paragraphs
        for number, words, hint in _search(paragraph)
        if _WAY_OUT not in lines[number - 1]
    }
    return sorted(violations)


def _search(paragraph: Paragraph) -> Iterator[tuple[int, str, str]]:
    text = "\n".join(line.strip() for _, line in paragraph)
    text = _CODE.sub(lambda code: "`" + "\n" * code[0].count("\n"), text)
    for pattern, hint in _RULES:
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start("words"))
            yield paragraph[line][0], " ".join(match["words"].split()), hint


def _of_markup(lines: Paragraph) -> Iterator[Paragraph]:
    """Paragraphs, list items and table cells; from code, the comments."""
    paragraph: Paragraph = []
    code_indent: int | None = None  # of the line that introduces a block of code
    is_fenced = is_doctest = False
    for number, line in lines:
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if code_indent is not None and stripped and indent <= code_indent:
            code_indent = None
        is_fence = stripped.startswith("```")
        is_fenced ^= is_fence
        is_doctest = bool(stripped) and (is_doctest or stripped.startswith(">>>"))
        starts_code = bool(_CODE_DIRECTIVE.match(stripped))
        if is_fenced or is_fence or is_doctest or starts_code or code_indent is not None:
            yield paragraph
            paragraph = []
            if comment := _COMMENT.search(line):
                yield [(number, comment[1])]
            code_indent = indent if starts_code else code_indent
            continue
        if not stripped or stripped.startswith("|"):
            yield paragraph
            paragraph = []
            yield from ([(number, cell)] for cell in stripped.split("|"))
            continue
        bullet = _BULLET.match(stripped)
        if bullet:
            yield paragraph
            paragraph = []
        paragraph.append((number, stripped[bullet.end() :] if bullet else stripped))
        if stripped.endswith("::") and not stripped.startswith(".."):
            code_indent = indent
    yield paragraph


def _of_python(text: str) -> Iterator[Paragraph]:
    """Comments, docstrings, strings of several words, and names of tests as words."""
    paragraph: Paragraph = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        number, comment = token.start[0], token.string.lstrip("#:! ")
        if token.line.strip() != token.string or (paragraph and paragraph[-1][0] != number - 1):
            yield paragraph
            paragraph = []
        paragraph.append((number, comment))
    yield paragraph
    lines = text.splitlines()
    covered: set[ast.AST] = set()  # parts of f-strings, docstrings
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield [(node.lineno, node.name.replace("_", " "))]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            covered.add(node.value)
            yield from _of_markup(list(enumerate(node.value.value.split("\n"), node.lineno)))
        elif isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            if node not in covered:
                yield _literal(node, lines)
            covered.update(ast.walk(node))


def _literal(node: ast.expr, lines: list[str]) -> Paragraph:
    """Lines of a string literal without quotes; none if it is a single word."""
    first, last = node.lineno, node.end_lineno or node.lineno
    source = [line.encode() for line in lines[first - 1 : last]]
    source[-1] = source[-1][: node.end_col_offset]
    source[0] = source[0][node.col_offset :]
    text = [_QUOTES.sub("", line.decode().strip()) for line in source]
    text = [re.sub(r"\{[^{}]*\}", "`x`", line) for line in text] if isinstance(node, ast.JoinedStr) else text
    return list(enumerate(text, first)) if any(" " in line.strip() for line in text) else []


def list_files(paths: list[str]) -> list[Path]:
    """Files of the repository at and below ``paths``, except this one, which has the table of words."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [
        Path(name) for name in sorted({*names} - {""}) if Path(name).is_file() and not name.endswith("tools/prose.py")
    ]


def main(paths: list[str]) -> int:
    violations = [violation for file in list_files(paths) for violation in check(file)]
    for violation in violations:
        print(violation)
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
