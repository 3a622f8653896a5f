"""Imports between the scripts, what they share, and the package."""

import ast
from pathlib import Path

import pytest

from ._support import SCRIPTS

FILES = sorted(SCRIPTS.rglob("*.py"))
SCRIPT_FILES = sorted(SCRIPTS.glob("*.py"))
SCRIPT_NAMES = {path.stem for path in SCRIPT_FILES}
# These modules import torchvision_layers, directly or through models; evaluate_exported.py must run without them.
WITH_PACKAGE = {
    "common.exporting",
    "common.pretrained_demo",
    "common.quantization",
    "common.runs.restore",
    "common.training.run",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(SCRIPTS).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, wherever in the file."""
    package = path.relative_to(SCRIPTS).parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parent, *([node.module] if node.module else [])])
            submodules = {f"{module}.{alias.name}" for alias in node.names} & MODULES
            names |= submodules or {module}
    return names


MODULES = {module_name(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_imports_a_script(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(path)} & SCRIPT_NAMES


@pytest.mark.parametrize("path", SCRIPT_FILES, ids=module_name)
def test_top_level_files_are_scripts(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert 'if __name__ == "__main__":\n    run_as_script(main, get_parser().parse_args())\n' in source


def test_imports_of_common_run_one_way() -> None:
    """Repeatedly removes the modules that import no remaining one; a circle would remain."""
    graph = {module_name(path): imports(path) & MODULES for path in FILES}
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys() - {name}}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph


def test_few_modules_of_common_import_the_package() -> None:
    importing = {
        module_name(path)
        for path in (SCRIPTS / "common").rglob("*.py")
        if any(name.partition(".")[0] in ("models", "torchvision_layers") for name in imports(path))
    }
    assert importing == WITH_PACKAGE


def test_imports_are_found() -> None:
    """The walk finds each form of an import."""
    assert {"common.distributed", "common.data.loading", "torch"} <= imports(SCRIPTS / "common" / "training" / "run.py")
    assert "common.training.run" in imports(SCRIPTS / "train.py")
    assert "models.resnet" in imports(SCRIPTS / "models" / "__init__.py")
