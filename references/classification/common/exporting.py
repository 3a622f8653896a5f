"""Export of a trained model to all its file formats."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchvision_layers import deploy

from .data.loading import ImageLoader
from .data.presets import normalization
from .quantization import calibrate
from .runs.reproducibility import seed_everything
from .settings import ModelCard
from .tables.files import FileRow
from .timing import LATENCY_BATCH, median_seconds


class FileFormat(NamedTuple):
    """A format, the runtime that reads it and, for int8, the engine and backend of the quantization."""

    format: str
    suffix: str
    runtime: str
    engine: str = ""
    backend: str = "x86"


FILES = {
    "torchscript": FileFormat("torchscript", "pt", "torch, in Python and C++"),
    "torchscript int8": FileFormat("torchscript", "pt", "torch, in Python and C++", "eager"),
    "pt2": FileFormat("pt2", "pt2", "torch, in Python"),
    "aoti": FileFormat("aoti", "pt2", "torch, in Python and C++, on this kind of processor"),
    "aoti int8": FileFormat("aoti", "pt2", "torch, in Python and C++, on this kind of processor", "pt2e"),
    "onnx": FileFormat("onnx", "onnx", "onnxruntime and others"),
    "onnx-qdq": FileFormat("onnx-qdq", "onnx", "onnxruntime and others; in int8", "pt2e", "onnxruntime"),
    "executorch": FileFormat("executorch", "pte", "ExecuTorch"),
    "executorch int8": FileFormat("executorch", "pte", "ExecuTorch", "pt2e", "xnnpack"),
}


def file_name(file: str) -> str:
    return f"{file.replace(' ', '_')}.{FILES[file].suffix}"


def export_model(model: nn.Module, images: Tensor, path: Path, card: ModelCard, format: str) -> deploy.Exported:
    """Exports a model with the metadata that is needed to use it."""
    mean, std = normalization(card.dataset, card.normalization)
    about = {name: getattr(card, name) for name in ("model_name", "dataset", "image_size", "normalization")}
    return deploy.export(model, images, path, format=format, classes=card.classes, mean=mean, std=std, about=about)


def export_files(
    model: nn.Module,
    loader: ImageLoader,
    card: ModelCard,
    output_dir: Path,
    files: Sequence[str],
    *,
    rounds: int,
    seed: int,
) -> list[FileRow]:
    """Folds the model, calibrates it on ``loader`` for the int8 files, then writes and times each of ``files``."""
    seed_everything(seed)
    sample = first_images(loader, LATENCY_BATCH)
    folded = deploy.fold(model, sample)
    rows: list[FileRow] = []
    exports: dict[str, tuple[deploy.Exported, deploy.Loaded]] = {}
    for file in files:
        format, _, _, engine, backend = FILES[file]
        path = output_dir / file_name(file)
        seed_everything(seed)  # a file does not depend on which others are written
        try:
            final = calibrate(folded, loader, engine=engine, backend=backend) if engine else folded
            exported = export_model(final, sample[:2], path, card, format)
        except (ImportError, FileNotFoundError) as error:  # a missing package or compiler
            rows.append(FileRow(card.model_name, file, problem=str(error), is_missing=True))
            continue
        except (RuntimeError, TypeError) as error:  # the format cannot hold the model, or computes other values
            rows.append(FileRow(card.model_name, file, problem=str(error)))
            continue
        exports[file] = exported, deploy.load(path)
    calls: list[Callable[[], object]] = [lambda: model(sample)]
    calls += [lambda call=loaded: call(sample) for _, loaded in exports.values()]
    with torch.inference_mode():
        float_seconds, *seconds = median_seconds(calls, rounds)
    for (file, (exported, _)), latency in zip(exports.items(), seconds, strict=True):
        rows.append(FileRow(card.model_name, file, exported.size, exported.difference, latency / float_seconds))
    return sorted(rows, key=lambda row: files.index(row.file))


def first_images(loader: ImageLoader, count: int) -> Tensor:
    """The first ``count`` images of ``loader``, repeated if it has fewer; ``ValueError`` if none can be read."""
    batches, total = [], 0
    for images, _ in loader:
        batches.append(images)
        total += len(images)
        if total >= count:
            break
    if not batches:
        raise ValueError("none of the training images can be read")
    return torch.cat(batches).repeat(-(-count // total), 1, 1, 1)[:count]
