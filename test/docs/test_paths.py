"""Paths and make targets that the pages name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "torchvision_layers"
ROOTS = {path.name: ROOT for path in ROOT.iterdir() if path.is_dir()}
ROOTS |= {path.name: PACKAGE for path in PACKAGE.iterdir() if path.is_dir()}  # pages leave out the name of the package
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs" / "source").glob("*.rst"),
    *PACKAGE.rglob("*.md"),
    *ROOT.glob("references/*/*.md"),
]
LITERAL = re.compile(r"``([^`\n]+)``|`([^`\n]+)`")
#: Written by a command on the page that names it, or a name to fill in.
PLACEHOLDER = re.compile(r"(^|/)(x|test_x|X|DIR|FILE)(\.|$)|[<*{ ]|^(outputs|build|dist)/|^docs/build/")


def paths(text: str) -> list[Path]:
    """Literals that are paths in the repository or in the package."""
    named = []
    for first, second in LITERAL.findall(text):
        path = (first or second).split("::")[0].split("#")[0].rstrip("/")
        folder, slash, _ = path.partition("/")
        if slash and folder in ROOTS and not PLACEHOLDER.search(path):
            named.append(ROOTS[folder] / path)
    return named


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w-]+):(?!=)", text, re.MULTILINE))


# upstream.rst names files of torchvision.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem != "upstream"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_paths_of_a_page_exist(page: Path) -> None:
    assert [path for path in paths(page.read_text(encoding="utf-8")) if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_of_a_page_exist(page: Path) -> None:
    named = re.findall(r"(?:``?|^ *|&& )make ([a-z][\w-]*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= targets()


def test_the_patterns_find_wrong_names() -> None:
    assert len(paths((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) > 15
    wrong = paths("See ``test/package/test_none.py``, `deploy/none.py` and ``a/b``.")
    assert wrong == [ROOT / "test/package/test_none.py", PACKAGE / "deploy/none.py"]
    assert {"test", "docs", "lint"} <= targets()
