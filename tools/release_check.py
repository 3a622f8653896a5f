"""Checks of a release before its tag: the version, the changelog, and the content and size of the distributions.

    python -m tools.release_check dist

The tag of a release is ``v`` and the content of version.txt: ``--tag v0.1.0`` checks that too. A version without
``.dev`` needs a section with a date in docs/source/changelog.rst.
"""

import argparse
import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
#: Bytes.
LARGEST = 1_000_000


def version_problems(version: str, changelog: str, tag: str | None) -> list[str]:
    """Problems of the version, one sentence each."""
    problems = []
    if tag is not None and tag != f"v{version}":
        problems.append(f"the tag must be v{version}, the version in version.txt, got {tag}")
    final = version.partition(".dev")[0]
    heading = re.search(rf"^{re.escape(final)}, (.+)\n-+$", changelog, re.MULTILINE)
    if heading is None:
        problems.append(f"docs/source/changelog.rst must have a section {final!r}, with the date or 'not released yet'")
    elif ".dev" not in version and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", heading[1]):
        problems.append(f"the section {final!r} of docs/source/changelog.rst must have a date, got {heading[1]!r}")
    return problems


def members(distribution: Path) -> set[str]:
    """Names in a wheel or source distribution, without the folder of the latter."""
    if distribution.suffix == ".whl":
        with ZipFile(distribution) as wheel:
            return set(wheel.namelist())
    with tarfile.open(distribution) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def distribution_problems(folder: Path, version: str) -> list[str]:
    """Problems of the distributions in a folder, one sentence each."""
    wheels, sources = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sources) != 1:
        return [f"{folder} must have one wheel and one source distribution, got {len(wheels)} and {len(sources)}"]
    package = ROOT / "torchvision_layers"
    files = {str(path.relative_to(ROOT).as_posix()) for path in package.rglob("*.py")} | {"torchvision_layers/py.typed"}
    problems = []
    for distribution in (*wheels, *sources):
        names, size = members(distribution), distribution.stat().st_size
        if version not in distribution.name:
            problems.append(f"{distribution.name} must be of version {version}")
        if missing := sorted(files - names):
            problems.append(f"{distribution.name} must contain every file of the package, {missing[0]} is missing")
        if size > LARGEST:
            problems.append(f"{distribution.name} must have at most {LARGEST:,} bytes, got {size:,}")
    foreign = sorted(name for name in members(wheels[0]) if not name.startswith("torchvision_layers"))
    if foreign:
        problems.append(f"{wheels[0].name} must contain only the package, got {foreign[0]}")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of the wheel and the source distribution")
    parser.add_argument("--tag", help="tag of the release")
    args = parser.parse_args(argv)
    version = (ROOT / "version.txt").read_text(encoding="utf-8").strip()
    changelog = (ROOT / "docs" / "source" / "changelog.rst").read_text(encoding="utf-8")
    problems = version_problems(version, changelog, args.tag)
    if args.folder is not None:
        problems += distribution_problems(args.folder, version)
        for path in sorted(args.folder.iterdir()):
            print(f"{path.name}: {path.stat().st_size:,} bytes")
    for problem in problems:
        print(problem, file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
