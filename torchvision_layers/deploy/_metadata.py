"""The JSON metadata in each file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..quantized import report
from ._signature import Signature
from ._subject import Subject

__all__ = ["NAME", "describe", "parse"]

#: Name of the metadata in each file.
NAME = "metadata.json"


def describe(
    subject: Subject,
    format: str,
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
            **subject.signature.to_json(),
            "quantization": _quantization(subject, format),
            "about": dict(about),
        },
        allow_nan=False,
    )


def _version() -> str:
    try:
        return version("torchvision_layers")
    except PackageNotFoundError:  # a checkout on the path that is not installed
        return "0+unknown"


def _quantization(subject: Subject, format: str) -> dict[str, object] | None:
    if subject.int8_part is None:
        return None
    modules = report(subject.int8_part)
    if subject.engine == "eager":
        needs_vnni = subject.backend == "onednn"
    else:
        needs_vnni = bool(modules.needs_vnni) or format in ("pt2", "aoti")  # oneDNN's kernels add any two products
    rows = [asdict(row) for row in modules.rows]
    return {"engine": subject.engine, "backend": subject.backend, "needs_vnni": needs_vnni, "report": rows}


def parse(text: str, path: Path) -> dict[str, Any]:
    """The metadata as a dictionary. Errors: ``ValueError`` if :func:`describe` did not write it."""
    try:
        metadata = json.loads(text)
        quantization = metadata["quantization"]
        Signature.from_json(metadata)
        is_valid = isinstance(metadata["format"], str) and (
            quantization is None or isinstance(quantization["backend"], str)
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has metadata that deploy.export did not write: {error!r}") from error
    if not is_valid:
        raise ValueError(f"{path} has metadata that deploy.export did not write: {text[:200]}")
    return dict(metadata)
