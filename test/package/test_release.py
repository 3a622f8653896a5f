"""Checks of a release, and the record of versions and extras that were tried."""

import json
import re
import tarfile
from pathlib import Path
from zipfile import ZipFile

import figures
import pytest
from setuptools import setup

from tools import release_check, versions

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "torchvision_layers"
CHANGELOG = "Changelog\n=========\n\n{heading}\n-------------------\n\nText.\n"


@pytest.mark.parametrize(
    ("version", "heading", "tag", "problem"),
    [
        ("0.2.0", "0.2.0, 2027-01-31", "v0.2.0", None),
        ("0.2.0", "0.2.0, 2027-01-31", None, None),
        ("0.2.0.dev0", "0.2.0, not released yet", None, None),
        ("0.2.0", "0.2.0, 2027-01-31", "v0.2", "the tag must be v0.2.0, the version in version.txt, got v0.2"),
        ("0.2.0", "0.2.0, not released yet", None, "must have a date, got 'not released yet'"),
        ("0.2.0", "0.1.0, 2027-01-31", None, "must have a section '0.2.0'"),
        ("0.2.0.dev0", "0.1.0, 2027-01-31", None, "must have a section '0.2.0'"),
    ],
)
def test_version_and_changelog(version: str, heading: str, tag: str | None, problem: str | None) -> None:
    problems = release_check.version_problems(version, CHANGELOG.format(heading=heading), tag)
    assert len(problems) == (problem is not None)
    assert problem is None or problem in problems[0]


def test_this_version_has_its_section() -> None:
    assert release_check.main([]) == 0


def write_distributions(folder: Path, extra: str = "", without: str = "", padding: int = 0) -> None:
    """A wheel and a source distribution with every file of the package."""
    names = [path.relative_to(ROOT) for path in [*PACKAGE.rglob("*.py"), PACKAGE / "py.typed"]]
    names = [name for name in names if name.name != without]
    with ZipFile(folder / "torchvision_layers-0.2.0-py3-none-any.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name.as_posix(), "")
        if extra:
            wheel.writestr(extra, "x" * padding)
    with tarfile.open(folder / "torchvision_layers-0.2.0.tar.gz", "w:gz") as source:
        for name in names:
            source.add(ROOT / name, f"torchvision_layers-0.2.0/{name.as_posix()}")


@pytest.mark.parametrize(
    ("extra", "without", "padding", "problem"),
    [
        ("", "", 0, None),
        ("test/test_layers.py", "", 0, "must contain only the package, got test/test_layers.py"),
        ("", "conv.py", 0, "must contain every file of the package, torchvision_layers/layers/conv.py is missing"),
        ("torchvision_layers/weights.bin", "", 1_000_000, "must have at most 1,000,000 bytes"),
    ],
)
def test_content_and_size(extra: str, without: str, padding: int, problem: str | None, tmp_path: Path) -> None:
    write_distributions(tmp_path, extra, without, padding)
    problems = release_check.distribution_problems(tmp_path, "0.2.0")
    assert bool(problems) == (problem is not None)
    assert problem is None or any(problem in text for text in problems)


def test_one_of_each_kind(tmp_path: Path) -> None:
    write_distributions(tmp_path)
    assert "must be of version 0.3.0" in release_check.distribution_problems(tmp_path, "0.3.0")[0]
    next(tmp_path.glob("*.whl")).unlink()
    assert "got 0 and 1" in release_check.distribution_problems(tmp_path, "0.2.0")[0]


def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The arguments of ``setup`` in setup.py."""
    arguments: dict[str, object] = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: arguments.update(given))
    exec(
        compile((ROOT / "setup.py").read_text(encoding="utf-8"), "setup.py", "exec"),
        {"__file__": str(ROOT / "setup.py")},
    )
    assert setup is not None
    return arguments


def test_the_package_needs_three_others(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = declared(monkeypatch)["install_requires"]
    assert isinstance(requirements, list)
    assert [re.split(r"[>=]", name)[0] for name in requirements] == ["torch", "torchvision", "typing_extensions"]


def test_every_extra_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = declared(monkeypatch)["extras_require"]
    assert isinstance(extras, dict)
    assert set(versions.record()["extras"]) == {*extras, "all together"}


def test_the_first_steps_passed_on_each_python() -> None:
    record = json.loads(versions.RECORD.read_text(encoding="utf-8"))
    passed = {
        key for key, cell in record["pairs"].items() if all(outcome == "passed" for outcome in cell["steps"].values())
    }
    assert {f"{python}, {torch}" for python in ("3.10", "3.11", "3.12", "3.13") for torch in ("2.11", "2.14")} <= passed


def test_the_table_shows_versions_and_reasons() -> None:
    steps = {"import": "passed", "README": "passed"}
    pairs = {
        "3.9, 2.9": {"versions": {"torch": "2.9.1+cpu", "torchvision": "0.24.0"}, "steps": steps},
        "3.10, 2.9": {"steps": {"install": "no wheel"}},
        "3.10, 2.10": {"versions": {"torch": "2.10.0", "torchvision": "0.25.0"}, "steps": {**steps, "README": "`x`"}},
    }
    table = figures.versions({"pairs": pairs})
    assert table.splitlines()[3:] == [
        "   * - ", "     - torch 2.9", "     - torch 2.10",
        "   * - Python 3.9", "     - 2.9.1, 0.24.0", "     - –",
        "   * - Python 3.10", "     - –", "     - –",
        "",
        "* 3.10 with 2.9: install: ``no wheel``",
        "* 3.10 with 2.10: README: ``'x'``",
    ]  # fmt: skip
