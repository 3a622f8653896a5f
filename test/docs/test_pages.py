"""The pages: their code runs, their names are all names there are, their drawings and links are as they should be."""

import importlib
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest
from drawings import DRAWINGS
from inventories import PROJECTS
from moving import PEERS, Peer, check

import torchvision_layers

ROOT = Path(torchvision_layers.__file__).parent.parent
SOURCE = ROOT / "docs" / "source"
PAGES = sorted(SOURCE.glob("*.rst"))
# `testsetup` holds what the examples of a page need and a reader does not.
BLOCK = re.compile(r"^( *)\.\. (?:testsetup::|code-block:: python)\n((?:\1 +\S.*\n|[ \t]*\n)+)", re.MULTILINE)
# The page of check_layer is run in test/conformance/test_check_layer.py, which also looks at what comes out.
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8")) and page.stem != "check_layer"]
SLOW = {"deploying"}  # compiles


def blocks(page: Path) -> list[str]:
    return [textwrap.dedent(match[2]) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


# torch's own, of what the pages show how to call.
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # torch.load of int8 weights
@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p.stem in SLOW else [], id=p.stem) for p in WITH_CODE]
)
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the examples may write
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), names)


def test_no_block_is_missed() -> None:
    """As many blocks are found as the pages announce, nested ones too."""
    for page in PAGES:
        announced = re.findall(r"code-block:: *py|sourcecode|testsetup|>>>", page.read_text(encoding="utf-8"))
        assert len(blocks(page)) == len(announced), page.name


def documented() -> dict[str, list[str]]:
    """Names by door that pages have an entry for: in an autosummary, or written out."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        door = re.search(r"^\.\. module:: (\S+)$", text, re.MULTILINE)
        if door is None:
            continue
        names = re.findall(r"^\.\. py:\w+:: (\w+)$", text, re.MULTILINE)
        for entries in re.findall(r"^\.\. autosummary::\n(?:   :.*\n)+\n((?:   \w+\n)+)", text, re.MULTILINE):
            names += entries.split()
        found.setdefault(door[1], []).extend(names)
    return found


def doors() -> list[str]:
    """Rooms that users import from: all but those with an underscore, and layers, whose door is nn."""
    rooms = [info.name for info in pkgutil.iter_modules(torchvision_layers.__path__) if info.ispkg]
    public = [room for room in rooms if not room.startswith("_") and room not in ("layers", "experimental")]
    return sorted(f"torchvision_layers.{room}" for room in [*public, "experimental.nn"])


def test_every_public_name_is_documented_once() -> None:
    found = documented()
    assert sorted(found) == doors()
    for door in doors():
        # A union of types that signatures refer to; there is nothing to import.
        names = [name for name in found[door] if (door, name) != ("torchvision_layers.nn", "LayerArgument")]
        assert sorted(names) == sorted(importlib.import_module(door).__all__), door


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_current(name: str) -> None:
    """``python docs/drawings`` writes them."""
    assert DRAWINGS[name].svg() == (SOURCE / "images" / f"{name}.svg").read_text(encoding="utf-8")


def test_each_drawing_stands_on_a_page_and_has_words() -> None:
    drawn = set(
        re.findall(r"^\.\. drawing:: (\w+)$", "\n".join(p.read_text(encoding="utf-8") for p in PAGES), re.MULTILINE)
    )
    of_layers = {name for names in documented().values() for name in names}
    assert set(DRAWINGS) == drawn | (of_layers & set(DRAWINGS))
    assert {path.stem for path in (SOURCE / "images").glob("*.svg")} == set(DRAWINGS)
    assert all(len(drawing.alt) > 40 for drawing in DRAWINGS.values())


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.theirs)
def test_a_layer_from_elsewhere_computes_the_same_as_ours(peer: Peer) -> None:
    check(peer)


def test_names_that_signatures_link_to_exist() -> None:
    for project, (_, names) in PROJECTS.items():
        for name in names:
            module, _, attribute = name.rpartition(".")
            if (project, name) != ("python", "typing.Self"):  # of Python 3.11
                assert attribute == "None" or hasattr(importlib.import_module(module or "builtins"), attribute), name


MARKDOWN = [path for path in sorted(ROOT.rglob("*.md")) if not {".venv", "build", "outputs"} & set(path.parts)]


def anchors(page: Path) -> set[str]:
    """What headings are linked by on a forge."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_markdown_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_readme_comes_in_its_order() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    landmarks = ["# torchvision_layers", "![", "make demo", "quantized.quantize(", "## Where to go next"]
    places = [text.index(landmark) for landmark in landmarks]
    assert places == sorted(places)
    assert re.findall(r"^## .*$", text, re.MULTILINE)[2] == "## Where to go next"
