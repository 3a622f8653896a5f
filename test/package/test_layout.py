"""The rooms of the package and the direction of imports between them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torchvision_layers

PACKAGE = Path(torchvision_layers.__file__).parent
REFERENCES = PACKAGE.parent / "references"

# What each room may import of the package, besides itself.
MAY_IMPORT = {
    "": {"nn"},  # torchvision_layers/__init__.py
    "_utils": set(),
    "layers": {"_utils"},
    "nn": {"layers"},
    "quantized": {"layers", "_utils"},
    "experimental": {"layers", "_utils"},
    "deploy": {"quantized", "layers", "_utils"},
    "testing": {"quantized"},
    "standalone": {"quantized", "_utils", "__version__"},
    "upstream": {"nn", "experimental", "standalone", "testing", "_utils"},
}


def rooms_imported(file: Path) -> set[str]:
    """Rooms of the package that a file of it imports."""
    inside = file.relative_to(PACKAGE.parent).with_suffix("").parts
    package = inside if file.name == "__init__.py" else inside[:-1]
    package = tuple(part for part in package if part != "__init__")
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            targets = [(*module, alias.name) for alias in node.names]
        else:
            continue
        found |= {target[1] for target in targets if target[0] == "torchvision_layers" and len(target) > 1}
    return found


def room_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file: Path) -> None:
    room = room_of(file)
    assert rooms_imported(file) <= MAY_IMPORT[room] | {room}


def test_an_arrow_that_points_back_is_seen() -> None:
    """The walk above finds each way to write an import."""
    assert rooms_imported(PACKAGE / "nn" / "__init__.py") == {"layers"}
    assert rooms_imported(PACKAGE / "layers" / "conv.py") == {"_utils"}
    assert "layers" in rooms_imported(PACKAGE / "quantized" / "conv.py")


@pytest.mark.parametrize(("module", "files"), [("torch.ao", {"_eager.py", "_twins.py"}), ("torchao", {"_pt2e.py"})])
def test_deprecated_stacks_stay_behind_few_files(module: str, files: set[str]) -> None:
    users = [
        path.name for path in FILES if f"import {module}" in path.read_text() or f"from {module}" in path.read_text()
    ]
    assert set(users) == files


def test_references_use_public_doors_only() -> None:
    rooms = ("nn", "quantized", "deploy", "experimental", "experimental.nn")
    doors = {"torchvision_layers", *(f"torchvision_layers.{room}" for room in rooms)}
    for file in REFERENCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torchvision_layers"):
                assert node.module in doors, file
                assert not any(alias.name.startswith("_") for alias in node.names), file


def test_import_loads_no_other_room_and_the_checks_load_no_engine_before_they_run() -> None:
    code = (
        "import sys, torchvision_layers\n"
        "rooms = ('experimental', 'quantized', 'deploy', 'testing', 'standalone', 'upstream')\n"
        "loaded = [m for m in sys.modules if m.startswith(tuple(f'torchvision_layers.{r}' for r in rooms))]\n"
        "print(loaded + [m for m in sys.modules if m.split('.')[0] == 'torchao'])\n"
        "import torchvision_layers.testing\n"
        "loaded = [m for m in sys.modules if m.startswith('torchvision_layers.quantized')]\n"
        "print(loaded + [m for m in sys.modules if m.split('.')[0] == 'torchao'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert result.stdout.split() == ["[]", "[]"]


def test_public_names_are_documented() -> None:
    from torchvision_layers import deploy, nn, quantized, standalone, upstream
    from torchvision_layers.experimental import nn as staged

    for door in (nn, quantized, deploy, standalone, upstream, staged):
        assert all(getattr(door, name).__doc__ for name in door.__all__)
