"""Fixtures with the files of all models and layers, which are written and run once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from torchvision_layers.standalone import write

from ..interpreter import Interpreter
from . import _runner
from ._support import (
    LAYERS,
    LAYERS_WITH_TWINS,
    MODELS,
    SLOW_MODELS,
    WITHOUT_TWINS,
    batch_of,
    images_of,
    reference_to,
    samples_of,
    size_of,
)


@pytest.fixture(scope="session")
def model_names(request: pytest.FixtureRequest) -> list[str]:
    """The models to write: all if slow tests run, otherwise those that are tested at every change."""
    is_slow = any(
        item.path.name == "test_write.py" and item.get_closest_marker("slow") for item in request.session.items
    )
    return [name for name in MODELS if is_slow or name not in SLOW_MODELS]


@pytest.fixture(scope="session")
def folder(model_names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for each model and stable layer, and a quantizable file for each that has twins."""
    folder = tmp_path_factory.mktemp("files")
    for name in model_names:
        write(reference_to(name), folder / f"{name}.py")
    for name in (name for name in model_names if name not in WITHOUT_TWINS):
        write(reference_to(name), folder / f"{name}_quantizable.py", quantizable=True)
    for name in LAYERS:
        write(f"torchvision_layers.nn:{name}", folder / f"{name}.py")
    for name in LAYERS_WITH_TWINS:
        write(f"torchvision_layers.nn:{name}", folder / f"{name}_quantizable.py", quantizable=True)
    return folder


@pytest.fixture(scope="session")
def alone(
    model_names: list[str], folder: Path, interpreter: Interpreter, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The results of all files in an interpreter that can import neither this package nor torchvision."""
    jobs: dict[str, dict[str, Any]] = {}
    for name in model_names:
        jobs[name] = {"path": str(folder / f"{name}.py"), "name": name, "kwargs": size_of(name)}
        jobs[name]["batch"] = images_of(name)
    for name in (name for name in model_names if name not in WITHOUT_TWINS):
        path = str(folder / f"{name}_quantizable.py")
        jobs[f"{name} quantizable"] = {**jobs[name], "path": path, "batches": [images_of(name)]}
    for name in LAYERS:
        for id, sample in samples_of(name).items():
            job = {"name": name, "kwargs": dict(sample.kwargs), "batch": batch_of(sample.shape)}
            jobs[f"{name} {id}"] = {**job, "path": str(folder / f"{name}.py")}
            if name in LAYERS_WITH_TWINS:
                twin = {**job, "path": str(folder / f"{name}_quantizable.py"), "name": f"Quantizable{name}"}
                jobs[f"{name} {id} quantizable"] = {**twin, "batches": [job["batch"]]}
    paths = [str(tmp_path_factory.mktemp("alone") / name) for name in ("jobs.pt", "outcomes.pt")]
    torch.save(jobs, paths[0])
    result = interpreter.run(Path(_runner.__file__), *paths)
    assert result.returncode == 0, result.stderr
    outcomes: dict[str, dict[str, Any]] = torch.load(paths[1], weights_only=False)
    return outcomes


@pytest.fixture(scope="session")
def ruff() -> Any:
    def run(*arguments: str, cwd: Path) -> str:
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
        result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
        return "" if result.returncode == 0 else result.stdout + result.stderr

    return run
