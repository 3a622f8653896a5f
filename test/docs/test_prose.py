"""The prose check finds planted words and openings, with file and line, and leaves code alone."""

import re
from pathlib import Path

import pytest

from tools import prose

WORD = next(iter(prose.WORDS))
PLACES = {
    "docstring.py": f'"""One line.\n\nThe map is computed {WORD}.\n"""\n',
    "comment.py": f"x = 1\n\n# The map is computed {WORD}.\n",
    "doc_comment.py": f"x = 1\n\n#: The map, computed {WORD}.\ny = 2\n",
    "message.py": f'raise ValueError(\n    "the map must be "\n    f"computed {WORD}, got {{x}}"\n)\n',
    "name.py": f"\n\ndef test_the_map_is_computed_{WORD}():\n    pass\n",
    "page.rst": f"Title\n=====\nThe map is computed {WORD}.\n",
    "directive.rst": f".. note::\n\n   The map is computed {WORD}.\n",
    "code.rst": f".. code-block:: python\n\n    x = 1  # computed {WORD}\n",
    "page.md": f"# Title\n\n- The map is computed {WORD}.\n",
    "table.md": f"| map |\n|---|\n| computed {WORD} |\n",
    "code.md": f"```sh\nls\nmake  # computed {WORD}\n```\n",
    "template.yml": f"a: 1\nb: 2\nc: computed {WORD}\n",
}
OPENINGS = ("Of two, one.", "What it is.", "Who calls it.", "Where it fails, stop.", "That the map is.")  # prose: ok


@pytest.mark.parametrize("name", PLACES)
def test_a_planted_word_is_found_in_its_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(PLACES[name], encoding="utf-8")
    (violation,) = prose.check(tmp_path / name)
    assert str(violation) == f"{tmp_path / name}:3: {WORD!r}: {prose.WORDS[WORD]}"


@pytest.mark.parametrize("rule", prose.WORDS)
def test_every_word_is_found_across_lines(rule: str, tmp_path: Path) -> None:
    words = re.sub(r"\(.*?\)\??|\|.*|\?", "", rule)
    path = tmp_path / "page.rst"
    path.write_text("A sentence about\n" + words.replace(" ", "\n"), encoding="utf-8")
    assert [(violation.line, violation.hint) for violation in prose.check(path)] == [(2, prose.WORDS[rule])]


@pytest.mark.parametrize(("sentence", "rule"), [*zip(OPENINGS, prose.OPENINGS, strict=True)])
def test_every_opening_is_found(sentence: str, rule: str, tmp_path: Path) -> None:
    for name, text in (("page.md", f"A sentence. {sentence}\n"), ("settings.toml", f"x = 1  # {sentence}\n")):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert [violation.hint for violation in prose.check(path)] == [prose.OPENINGS[rule]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("question.md", "What is a twin? Where is it, and who made it? Of course it helps.\n"),
        ("literal.md", f"Pass `{WORD}=True`, as [here]({WORD}.md).\n"),
        ("literal.rst", f"Pass ``{WORD}=True`` to :class:`{WORD}`.\n"),
        ("code.rst", f"Example::\n\n    {WORD}(1)\n\nText.\n"),
        ("doctest.py", f'"""Example:\n\n>>> {WORD}(1)\n{WORD}\n"""\n'),
        ("code.py", f'{WORD} = x["{WORD}"]\n'),
        ("formatted.py", f'raise ValueError(f"must be 1, got {{{WORD}}}")\n'),
        ("way_out.py", f"# The map is computed {WORD}; prose: ok\n"),
        ("data.json", f'{{"map": "computed {WORD}"}}\n'),
    ],
)
def test_code_questions_and_exempt_lines_pass(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert prose.check(tmp_path / name) == []


def test_lint_fails_and_shows_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prose, "list_files", lambda paths: [Path(path) for path in paths])
    (tmp_path / "page.md").write_text(PLACES["page.md"], encoding="utf-8")
    assert prose.main([str(tmp_path / "page.md")]) == 1
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'page.md'}:3: ")
    config = Path(__file__).parents[2] / ".pre-commit-config.yaml"
    assert "entry: python tools/prose.py" in config.read_text(encoding="utf-8")
