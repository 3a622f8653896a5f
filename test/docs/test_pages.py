"""Code on the pages runs, every public name is documented, diagrams are current, and links resolve."""

import importlib
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest
from drawings import DRAWINGS
from drawings.package_maps import PACKAGE_MAPS
from inventories import PROJECTS
from moving import PEERS, Peer, check

import torchvision_layers

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "source"
PAGES = sorted(SOURCE.glob("*.rst"))
# `testsetup` has code that examples need but readers do not.
BLOCK = re.compile(r"^( *)\.\. (?:testsetup::|code-block:: python)\n((?:\1 +\S.*\n|[ \t]*\n)+)", re.MULTILINE)
# test/conformance/test_check_layer.py runs the code of check_layer.rst and compares its output.
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8")) and page.stem != "check_layer"]
SLOW = {"deploying"}  # compiles


def blocks(page: Path) -> list[str]:
    return [textwrap.dedent(match[2]) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


# Warnings of torch functions that the pages call.
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # torch.load of int8 weights
@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p.stem in SLOW else [], id=p.stem) for p in WITH_CODE]
)
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples write files to the current folder
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), names)


def test_no_block_is_missed() -> None:
    """The pattern matches every block, including nested ones."""
    for page in PAGES:
        announced = re.findall(r"code-block:: *py|sourcecode|testsetup|>>>", page.read_text(encoding="utf-8"))
        assert len(blocks(page)) == len(announced), page.name


def documented() -> dict[str, list[str]]:
    """Names by package that have an entry on a page: in an autosummary, or as a directive."""
    entries: dict[str, list[str]] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        package = re.search(r"^\.\. module:: (\S+)$", text, re.MULTILINE)
        if package is None:
            continue
        names = re.findall(r"^\.\. py:\w+:: (\w+)$", text, re.MULTILINE)
        for summary in re.findall(r"^\.\. autosummary::\n(?:   :.*\n)+\n((?:   \w+\n)+)", text, re.MULTILINE):
            names += summary.split()
        entries.setdefault(package[1], []).extend(names)
    return entries


def public_packages() -> list[str]:
    """Every package except those with an underscore, and ``layers``, which users import as ``nn``."""
    packages = [info.name for info in pkgutil.iter_modules(torchvision_layers.__path__) if info.ispkg]
    public = [name for name in packages if not name.startswith("_") and name not in ("layers", "experimental")]
    return sorted(f"torchvision_layers.{name}" for name in [*public, "experimental.nn"])


def test_every_public_name_is_documented_once() -> None:
    entries = documented()
    assert sorted(entries) == public_packages()
    for package in public_packages():
        # LayerArgument is a union type in signatures, not a name to import.
        names = [name for name in entries[package] if (package, name) != ("torchvision_layers.nn", "LayerArgument")]
        assert sorted(names) == sorted(importlib.import_module(package).__all__), package


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_current(name: str) -> None:
    """``python docs/drawings`` writes them."""
    assert DRAWINGS[name].svg() == (SOURCE / "images" / f"{name}.svg").read_text(encoding="utf-8")


def test_each_drawing_is_on_a_page_and_has_an_alt_text() -> None:
    drawn = set(
        re.findall(r"^\.\. drawing:: (\w+)$", "\n".join(p.read_text(encoding="utf-8") for p in PAGES), re.MULTILINE)
    )
    documented_names = {name for names in documented().values() for name in names}
    assert set(DRAWINGS) == drawn | (documented_names & set(DRAWINGS))
    assert {path.stem for path in (SOURCE / "images").glob("*.svg")} == set(DRAWINGS)
    assert all(len(drawing.alt) > 40 for drawing in DRAWINGS.values())


@pytest.mark.parametrize("name", PACKAGE_MAPS)
def test_the_map_of_a_package_has_each_file_once(name: str) -> None:
    assert sorted(PACKAGE_MAPS[name].names) == PACKAGE_MAPS[name].existing


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.theirs)
def test_peer_gives_the_same_results(peer: Peer) -> None:
    check(peer)


def test_external_names_exist() -> None:
    for project, (_, names) in PROJECTS.items():
        for name in names:
            module, _, attribute = name.rpartition(".")
            if (project, name) != ("python", "typing.Self"):  # new in Python 3.11
                assert attribute == "None" or hasattr(importlib.import_module(module or "builtins"), attribute), name


#: Environments such as .venv and .venv-nncf hold the pages of other packages.
MARKDOWN = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith(".venv") or part in ("build", "outputs") for part in path.relative_to(ROOT).parts)
]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub generates them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_markdown_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_readme_begins_with_the_readers_model() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "a model from torchvision or timm" in "".join(text.splitlines()[:10])
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[:4] == ["Install", "Ten lines", "A model of these layers", "Two commands"]
