"""Edits of the files in a checkout; everything around an edit stays as it is."""

import re
import subprocess
import sys
from collections.abc import Iterable

import libcst as cst
from libcst import matchers as m

__all__ = ["add_class", "add_imports", "add_page_entry", "add_public_name", "sort_imports"]

_IS_IMPORT = m.SimpleStatementLine([m.Import() | m.ImportFrom()])
_ALL = m.Assign([m.AssignTarget(m.Name("__all__"))], m.List([m.AtLeastN(m.Element(), n=2)]))
# usort's order, which torchvision uses.
_USORT = (
    "lint.isort.order-by-type=false",
    'lint.isort.default-section="third-party"',
    'lint.isort.known-third-party=["torchvision"]',
)


def sort_imports(text: str) -> str:
    """Sorts and merges imports."""
    options = [f"--config={option}" for option in ("line-length=120", *_USORT)]
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=I", "--fix-only", "--quiet", *options, "-"]
    return subprocess.run(ruff, input=text, capture_output=True, encoding="utf-8", check=True).stdout


def add_imports(text: str, imports: Iterable[str]) -> str:
    """Adds lines to the first block of imports."""
    module = cst.parse_module(text)
    is_import = [*(m.matches(statement, _IS_IMPORT) for statement in module.body), False]
    start = is_import.index(True)
    stop = is_import.index(False, start)
    block = "".join(map(module.code_for_node, module.body[start:stop]))
    return text.replace(block, sort_imports("".join([block, *imports])), 1)


def add_public_name(text: str, name: str) -> str:
    """Adds ``name`` at the end of ``__all__``.

    Raises ``ValueError`` if ``__all__`` is not a list of several names.
    """

    def extend(node: cst.CSTNode, _: object) -> cst.CSTNode:
        names = cst.ensure_type(cst.ensure_type(node, cst.Assign).value, cst.List)
        first, *others, last = names.elements
        entry = last.with_changes(value=cst.SimpleString(f'"{name}"'))
        elements = [first, *others, last.with_changes(comma=first.comma), entry]
        return node.with_changes(value=names.with_changes(elements=elements))

    module = cst.parse_module(text)
    if not m.findall(module, _ALL):
        raise ValueError("torchvision/ops/__init__.py must have the layout of torchvision 0.29, __all__ is not a list")
    return cst.ensure_type(m.replace(module, _ALL, extend), cst.Module).code


def add_class(text: str, code: str) -> str:
    """Adds a class at the end of a file, before ``if __name__ == "__main__"``."""
    module = cst.parse_module(text)
    position = len(module.body) - isinstance(module.body[-1], cst.If)
    node = cst.ensure_type(cst.parse_statement(code), cst.ClassDef)
    node = node.with_changes(leading_lines=[cst.EmptyLine(indent=False)] * 2)
    return module.with_changes(body=[*module.body[:position], node, *module.body[position:]]).code


def add_page_entry(text: str, name: str) -> str:
    """Adds ``name`` to the alphabetical list of classes in the section on layers of the docs, unless it is there.

    Raises ``ValueError`` if there is no such section.
    """
    section = re.search(r"^Layers\n-+\n.*?:template: class\.rst\n\n((?: +\w+\n)+)", text, re.M | re.S)
    if section is None:
        raise ValueError("docs/source/ops.rst must have the layout of torchvision 0.29, it has no section 'Layers'")
    names = sorted({*section[1].split(), name}, key=str.lower)
    return text[: section.start(1)] + "".join(f"    {entry}\n" for entry in names) + text[section.end(1) :]
