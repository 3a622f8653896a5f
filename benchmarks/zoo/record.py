"""The record: a JSON with the figures of each model and column, and the conditions under which they were found."""

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["PATH", "Record", "conditions", "load", "save"]

PATH = Path(__file__).with_name("zoo.json")
PACKAGES = ("torch", "torchvision", "torchao", "timm", "onnx", "onnxruntime")

#: Figures by model and column. A cell has ``"reason"`` if the column failed, and always ``"conditions"``.
Record = dict[str, dict[str, dict[str, Any]]]


def conditions(size: int, batch: int) -> str:
    """Versions and settings that change the figures; a cell with other conditions is run again."""
    versions = [f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in PACKAGES]
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join([*versions, capability, f"{batch} images of {size} pixels"])


def load(path: Path = PATH) -> Record:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(record: Record, path: Path = PATH) -> None:
    """Writes the file under a temporary name first, so that an interrupted run leaves the record whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
