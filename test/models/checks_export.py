"""Exported files give what the model gives, at sizes that were not the example's."""

import shutil
from pathlib import Path

from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers._utils.structure import flatten

from .checks_int8 import FIXED, quantize
from .comparing import check_close, check_explained
from .outcomes import CheckError, refuse
from .subject import Subject, outputs_of

__all__ = ["check_export", "check_int8_export"]

_SUFFIXES = {"torchscript": ".pt", "pt2": ".pt2", "aoti": ".pt2", "onnx": ".onnx", "onnx-qdq": ".onnx"}


def check_export(subject: Subject, format: str | None) -> None:
    """A float file; without a format, a lowered program."""
    loaded = _export(subject, subject.model(), format)
    for batch, size in ((2, 0), (1, 1), (3, 2)):
        place = f"{format or 'lowered'}, batch of {batch}, size {size}"
        outputs = _run(loaded, subject.inputs(batch, size))
        if outputs is not None:
            check_close(outputs, subject.expected(batch, size), 2e-4, place)


def check_int8_export(subject: Subject, format: str | None, engine: str, backend: str) -> None:
    """A file of an int8 model: integer kernels may round other values to another side."""
    int8, _ = quantize(subject, engine, backend)
    loaded = _export(subject, int8, format)
    for batch, size in ((2, 0), (1, 1), (3, 2)):
        inputs, place = subject.inputs(batch, size), f"{format or 'lowered'}, batch of {batch}, size {size}"
        try:
            expected = outputs_of(int8, inputs)
        except ValueError as error:
            if engine == "pt2e" and FIXED.search(str(error)):
                continue
            raise
        outputs = _run(loaded, inputs)
        if outputs is None:
            continue
        if format in ("torchscript", "pt2"):
            check_close(outputs, expected, 1e-5, place)
        else:
            check_explained(outputs, expected, subject.estimate, place, 2)


def _export(subject: Subject, model: nn.Module, format: str | None) -> deploy.Loaded:
    inputs = subject.inputs()
    example = inputs.kwargs or (inputs.args[0] if len(inputs.args) == 1 else tuple(inputs.args))
    folder = Path(subject.folder) / "files"
    folder.mkdir(exist_ok=True)
    try:
        path = deploy.export(model, example, folder / f"model{_SUFFIXES[format or 'pt2']}", format=format).path
        return deploy.load(path)
    except Exception as error:
        raise refuse(error, subject.text) from error
    finally:
        shutil.rmtree(folder)


def _run(loaded: deploy.Loaded, inputs: Inputs) -> list[Tensor] | None:
    """The outputs of a file; ``None`` if its metadata excludes this size."""
    try:
        return flatten(inputs.map(Tensor.clone).run(loaded))[0]  # a forward may write into its input
    except (ValueError, TypeError) as error:
        if "must have" in str(error):  # such as "input must have sizes that the program supports"
            return None
        raise CheckError(f"{loaded.format}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise CheckError(f"{loaded.format}: {type(error).__name__}: {error}") from error
