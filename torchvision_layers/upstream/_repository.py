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
_SPECS = "test/layer_specs.py"


def _file(name: str) -> Path:
    repository = Path(torchvision_layers.__file__).parent.parent
    if not (repository / name).is_file():
        raise ValueError(
            f"the command must run in a clone of the repository of torchvision_layers, which has {name}; the package "
            f"at {repository} is installed without it. Clone the repository, and `pip install -e .` there"
        )
    return repository / name


def record_of(layer: str) -> dict[str, dict[str, str]]:
    """What came out of the matrix, by row and cell.

    Errors: ``ValueError`` for an installed package, or a layer without a record.
    """
    record: dict[str, Any] = json.loads(_file(_RECORD).read_text(encoding="utf-8"))
    if layer not in record:
        raise ValueError(f"{_RECORD} must have a record of {layer}: run `make table`")
    return record[layer]


def spec_of(layer: str) -> LayerSpec:
    """What the matrix knows of a layer: samples, the independent reference, what it refuses.

    Errors: ``ValueError`` for an installed package; ``ImportError`` where what the tests need is missing.
    """
    folder = str(_file(_SPECS).parent)
    sys.path.insert(0, folder)
    try:
        specs: tuple[LayerSpec, ...] = importlib.import_module("layer_specs").SPECS
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{_SPECS} needs {error.name}: pip install what the tests need, as `make test` does"
        ) from error
    finally:
        sys.path.remove(folder)
    return next(spec for spec in specs if spec.name == layer)
