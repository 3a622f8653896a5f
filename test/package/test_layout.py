"""Imports between the packages run one way, without circles, and only through the public API from outside."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import torchvision_layers

from ..interpreter import Interpreter

PACKAGE = Path(torchvision_layers.__file__).parent
ROOT = Path(__file__).parents[2]
FILES = sorted(PACKAGE.rglob("*.py"))
NAME = PACKAGE.name

# The packages that each package may import, besides itself.
MAY_IMPORT = {
    "": {"nn"},  # torchvision_layers/__init__.py
    "_utils": set(),
    "_source": {"_utils"},
    "layers": {"_utils"},
    "nn": {"layers"},
    "experimental": {"layers", "_utils"},
    "quantized": {"layers", "_utils"},
    "deploy": {"quantized", "layers", "_utils"},
    "standalone": {"quantized", "_source", "_utils", "__version__"},
    "testing": {"quantized", "_utils"},
}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if file.name == "__init__.py" else parts)


MODULES = {module_name(file): file for file in FILES}


def imported_names(source: str, module: str, is_package: bool = False) -> set[str]:
    """Dotted names that a module imports, wherever the statement is: ``from a import b`` counts as ``a.b``."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def imports_of(module: str) -> set[str]:
    """Modules of the package that a module of it imports: the file that defines a name, or the package itself."""
    file = MODULES[module]
    names = imported_names(file.read_text(encoding="utf-8"), module, file.name == "__init__.py")
    modules = set[str]()
    for name in names:
        if name.split(".")[0] == NAME:
            modules.add(name if name in MODULES else name.rpartition(".")[0])
    return modules - {module}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_one_way(module: str) -> None:
    package = module.split(".")[1] if "." in module else ""
    targets = {name.split(".")[1] for name in imports_of(module) if "." in name}
    assert targets <= MAY_IMPORT[package] | {package}


def test_no_circle() -> None:
    """Imports inside functions count too: they hide a circle, they do not remove it."""
    try:
        TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import torchvision_layers.layers.conv", "torchvision_layers.layers.conv"),
        ("from ..layers.conv import ConvNormAct", "torchvision_layers.layers.conv.ConvNormAct"),
        ("from .. import deploy", "torchvision_layers.deploy"),
        ("from . import workflow", "torchvision_layers.quantized.workflow"),
        ("def f():\n    from ..nn import MLP", "torchvision_layers.nn.MLP"),
        ("if False:\n    from torchvision_layers import nn", "torchvision_layers.nn"),
    ],
)
def test_every_form_of_import_is_found(statement: str, expected: str) -> None:
    assert imported_names(statement, "torchvision_layers.quantized.api") == {expected}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_file_has_at_most_300_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize(
    ("stack", "users"),
    [
        ("torch.ao", {"quantized/eager/torch_ao", "standalone"}),  # standalone: source for the files that it writes
        ("torchao", {"quantized/pt2e"}),
    ],
)
def test_deprecated_stacks_are_imported_in_one_place(stack: str, users: set[str]) -> None:
    importers = set()
    for module, file in MODULES.items():
        names = imported_names(file.read_text(encoding="utf-8"), module, file.name == "__init__.py")
        if any(f"{name}.".startswith(f"{stack}.") for name in names):
            importers.add(file.relative_to(PACKAGE).parent.as_posix())
    assert importers == users


def test_references_use_the_public_api_only() -> None:
    packages = ("nn", "quantized", "deploy", "experimental", "experimental.nn")
    public = {NAME, *(f"{NAME}.{package}" for package in packages)}
    for file in (ROOT / "references").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(NAME):
                assert node.module in public, file
                assert not any(alias.name.startswith("_") for alias in node.names), file


def test_packages_are_imported_on_demand(interpreter: Interpreter) -> None:
    """The layers alone load nothing else, and the checks load no engine before they run."""
    code = (
        "import sys, torchvision_layers\n"
        "packages = ('experimental', 'quantized', 'deploy', 'testing', 'standalone', '_source')\n"
        "loaded = [m for m in sys.modules if m.startswith(tuple(f'torchvision_layers.{p}' for p in packages))]\n"
        "print(loaded + [m for m in sys.modules if m.split('.')[0] in ('torchao', 'libcst')])\n"
        "import torchvision_layers.testing\n"
        "loaded = [m for m in sys.modules if m.startswith('torchvision_layers.quantized')]\n"
        "print(loaded + [m for m in sys.modules if m.split('.')[0] == 'torchao'])"
    )
    result = interpreter.run(code, cwd=PACKAGE.parent)
    assert result.stdout.split() == ["[]", "[]"], result.stderr


def test_public_names_are_documented() -> None:
    from torchvision_layers import deploy, nn, quantized, standalone
    from torchvision_layers.experimental import nn as staged

    for package in (nn, quantized, deploy, standalone, staged):
        assert all(getattr(package, name).__doc__ for name in package.__all__)
