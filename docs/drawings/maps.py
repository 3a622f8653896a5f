"""The files of each package by the work they do, one picture per package."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .svg import CONV, MUTED, PLAIN, Sheet

__all__ = ["Group", "PackageMap", "draw_map", "map_alt"]

ROOT = Path(__file__).parents[2] / "torchvision_layers"
_WIDTH, _MARGIN, _GAP, _LINE, _ARROW = 700, 16, 14, 17, 22
_CHARACTER = 7.3  # width of a monospace character at 12 pixels


class Group(NamedTuple):
    """Files with one task."""

    task: str
    #: Names without ``.py``, separated by spaces; a folder ends with a slash.
    files: str

    @property
    def names(self) -> list[str]:
        return self.files.split()


class PackageMap(NamedTuple):
    """Rows of groups. With ``flow``, each row works on the results of the row above it."""

    package: str
    rows: Sequence[Sequence[Group]]
    flow: bool = True

    @property
    def names(self) -> list[str]:
        """All names in the picture."""
        return [name for row in self.rows for group in row for name in group.names]

    @property
    def existing(self) -> list[str]:
        """All names in its folder: modules except ``__init__`` and ``__main__``, and subpackages."""
        folder = ROOT / self.package
        modules = [path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__")]
        return sorted([*modules, *(f"{path.parent.name}/" for path in folder.glob("*/__init__.py"))])


def _lines(names: Sequence[str], width: float) -> list[str]:
    """``names`` in lines that fit into ``width`` pixels."""
    lines: list[str] = []
    for name in names:
        if lines and (len(lines[-1]) + 2 + len(name)) * _CHARACTER <= width - 16:
            lines[-1] += "  " + name
        else:
            lines.append(name)
    return lines


def draw_map(shown: PackageMap) -> Sheet:
    """A box for each group, with its files."""
    boxes = []
    y = float(_MARGIN)
    for row in shown.rows:
        width = (_WIDTH - 2 * _MARGIN - _GAP * (len(row) - 1)) / len(row)
        texts = [_lines(group.names, width) for group in row]
        height = 32 + _LINE * max(map(len, texts)) + 4
        for i, (group, lines) in enumerate(zip(row, texts, strict=True)):
            boxes.append((_MARGIN + i * (width + _GAP), y, width, height, group.task, lines))
        y += height + (_ARROW if shown.flow else _GAP)
    sheet = Sheet(_WIDTH, y - (_ARROW if shown.flow else _GAP) + _MARGIN)
    for left, top, width, height, task, lines in boxes:
        if shown.flow and top > _MARGIN:
            sheet.line([(left + width / 2, top - _ARROW), (left + width / 2, top)], arrow=True, color=MUTED)
        sheet.box(left, top, width, height, CONV if shown.flow else PLAIN)
        sheet.words(left + width / 2, top + 17, task, bold=True)
        for i, line in enumerate(lines):
            sheet.words(left + width / 2, top + 38 + _LINE * i, line, size=12, mono=True)
    return sheet


def map_alt(shown: PackageMap) -> str:
    """The picture in words."""
    joint = "; then " if shown.flow else "; "
    rows = (" and ".join(f"{group.task} ({', '.join(group.names)})" for group in row) for row in shown.rows)
    return f"Files of {shown.package} by task: {joint.join(rows)}."
