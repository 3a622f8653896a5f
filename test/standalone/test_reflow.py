"""Statements whose names changed are broken as ruff breaks them; docstrings lose what is not in the file."""

from pathlib import Path
from typing import Any

import pytest

from torchvision_layers.standalone._docstrings import without_doors
from torchvision_layers.standalone._reflow import reflow

from ._support import ROOT

LONG = "a_rather_long_name_of_something_that_stands_in_a_file"
STATEMENTS = {
    "short": "x = f(\n    a, b\n)",
    "comma": "x = f(\n    a,\n    b,\n)",
    "inner comma": "x = f(\n    g(\n        a,\n    ),\n    b\n)",
    "one tuple": "x = (a,)",
    "call": f"x = f({LONG}, {LONG}, a)",
    "long call": f"x = f({LONG}, {LONG}, {LONG}, a=1)",
    "nested": f"x.append(f(*({LONG}({LONG}, drop=drop) for drop in drops), {LONG}))",
    "generator": f"x = tuple({LONG}({LONG}, drop={LONG}) for drop in drops if drop)",
    "ternary": f"x = f(a, {LONG}({LONG}, b=1) if {LONG} else None, c=2)",
    "booleans": f"x = f({LONG} and {LONG} or {LONG} and a or b)",
    "definition": f"def f(a: {LONG}, b: {LONG} | None = None) -> tuple[{LONG}]:\n    return a",
    "short definition": "def f(\n    a: int, b: int\n) -> dict[str, int]:\n    return a",
    "class": f"class A({LONG}, {LONG}, {LONG}):\n    pass",
    "subscript": f"x: dict[str, {LONG}] = {{'a': {LONG}, 'b': {LONG}}}".replace("'", '"'),
    "decorator": f"@f({LONG}, {LONG}, {LONG})\ndef g() -> None:\n    pass",
    "raise": f'raise ValueError(f"a must be {{a}}", {LONG}, {LONG})',
    "comment": "x = f(\n    a,  # of a\n    b\n)",
}


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name != "comment"])
def test_as_ruff_does(name: str, tmp_path: Path, ruff: Any) -> None:
    lines = STATEMENTS[name].split("\n")
    (tmp_path / "file.py").write_text("\n".join(reflow(lines, set(range(len(lines))))) + "\n")
    assert ruff("format", "--check", "--diff", "--config", str(ROOT / "pyproject.toml"), cwd=tmp_path) == ""


def test_what_did_not_change_stays() -> None:
    lines = [*STATEMENTS["short"].split("\n"), "y = f(", "    a, b", ")"]
    assert reflow(lines, {4}) == [*lines[:3], "y = f(a, b)"]
    assert reflow(lines, set()) == lines
    comment = STATEMENTS["comment"].split("\n")
    assert reflow(comment, {1}) == comment


DOCSTRING = '''\
    """A layer, of ``tnn.Here``.

    Examples::

        >>> tnn.Here(1)
        Here()
        >>> layer = enn.Elsewhere(
        ...     tnn.Here(1))
        >>> 1 + 1
        2
    """'''


def name_of(door: str, name: str) -> str | None:
    return {"Here": "HereOfModule"}.get(name)


def test_examples_of_what_is_not_there_go() -> None:
    lines = [line for line in without_doors(DOCSTRING.split("\n"), name_of) if line is not None]
    text = "\n".join(lines)
    assert "of ``HereOfModule``." in text
    assert ">>> HereOfModule(1)\n        Here()\n        >>> 1 + 1\n" in text
    assert "Elsewhere" not in text
    assert "..." not in text


def test_no_title_is_left_without_examples() -> None:
    lines = DOCSTRING.replace("tnn.Here(1)", "tnn.Nowhere(1)").replace(">>> 1 + 1\n        2", "").split("\n")
    kept = [line for line in without_doors(lines, name_of) if line is not None]
    assert kept == ['    """A layer, of ``HereOfModule``.', '    """']
