"""What only the repository of this package has: the specifications of layers, and what came out of the matrix."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torchvision_layers

from ..testing import LayerSpec

__all__ = ["record_of", "spec_of"]

_RECORD = "docs/source/conformance.json"
_SPECS = "test/conformance/specs/__init__.py"


def _file(repository: str | Path | None, name: str) -> Path:
    folder = Path(torchvision_layers.__file__).parent.parent if repository is None else Path(repository).expanduser()
    if not (folder / name).is_file():
        why = "the package is installed without it" if repository is None else "that is another folder"
        raise ValueError(
            f"--repository must be a clone of the repository of torchvision_layers, which has {name}; {folder} has "
            f"none, {why}"
        )
    return folder / name


def record_of(layer: str, repository: str | Path | None) -> dict[str, dict[str, str]]:
    """What came out of the matrix, by row and cell.

    Errors: ``ValueError`` where there is no repository, or no record of the layer.
    """
    record: dict[str, Any] = json.loads(_file(repository, _RECORD).read_text(encoding="utf-8"))
    if layer not in record:
        raise ValueError(f"{_RECORD} must have a record of {layer}: run `make table`")
    return record[layer]


def spec_of(layer: str, repository: str | Path | None) -> LayerSpec:
    """What the matrix knows of a layer: samples, the independent reference, what it refuses.

    Errors: ``ValueError`` where there is no repository, ``ImportError`` where what the tests need is missing.
    """
    folder = str(_file(repository, _SPECS).parents[3])
    sys.path.insert(0, folder)
    try:
        specs: tuple[LayerSpec, ...] = importlib.import_module("test.conformance.specs").SPECS
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{_SPECS} needs {error.name}: pip install what the tests need, as `make test` does"
        ) from error
    finally:
        sys.path.remove(folder)
    return next(spec for spec in specs if spec.name == layer)
