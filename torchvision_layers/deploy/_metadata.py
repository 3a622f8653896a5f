"""What a file says of itself, as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..quantized import report
from ._kinds import Kind, kind_of, quantized_part

__all__ = ["NAME", "describe", "input_shape_in", "parse"]

#: Under which each file holds it.
NAME = "metadata.json"


def describe(
    model: nn.Module,
    format: str,
    input_shape: Sequence[int | None],
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    about: Mapping[str, object],
) -> str:
    return json.dumps(
        {
            "format": format,
            "torchvision_layers": _version(),
            "torch": str(torch.__version__),
            "classes": list(classes),
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            "input_shape": list(input_shape),
            "quantization": _quantization(model),
            "about": dict(about),
        },
        allow_nan=False,
    )


def _version() -> str:
    try:
        return version("torchvision_layers")
    except PackageNotFoundError:  # a checkout on the path, not installed
        return "0+unknown"


def _quantization(model: nn.Module) -> dict[str, object] | None:
    kind, part = kind_of(model), quantized_part(model)
    if kind is Kind.FLOAT:
        return None
    return {
        "engine": "pt2e" if kind is Kind.PT2E else "eager",
        # Of modules that torch.ao converted without us, the engine in force is all that is known.
        "backend": part.backend if part is not None else torch.backends.quantized.engine,
        "report": [asdict(row) for row in report(part if part is not None else model).rows],
    }


def input_shape_in(metadata: str) -> list[int | None]:
    shape: list[int | None] = json.loads(metadata)["input_shape"]
    return shape


def parse(text: str, path: Path) -> dict[str, Any]:
    """The metadata as a dictionary. Errors: ``ValueError`` where it is not ours."""
    try:
        metadata = json.loads(text)
        shape, quantization = metadata["input_shape"], metadata["quantization"]
        is_ours = (
            isinstance(metadata["format"], str)
            and isinstance(shape, list)
            and all(size is None or isinstance(size, int) for size in shape)
            and (quantization is None or isinstance(quantization["backend"], str))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has metadata that deploy.export did not write: {error!r}") from error
    if not is_ours:
        raise ValueError(f"{path} has metadata that deploy.export did not write: {text[:200]}")
    return dict(metadata)
