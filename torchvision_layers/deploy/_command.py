"""A checkpoint of a model becomes a file: what the command does, step by step."""

import importlib
import inspect
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.importing import factory

__all__ = ["BACKENDS", "ENGINES", "SUFFIXES", "run"]

#: Format by the suffix of the output, where none is given.
SUFFIXES = {".onnx": "onnx", ".pt": "torchscript", ".pt2": "pt2", ".pte": "executorch"}
#: Engine of int8 by format.
ENGINES = {"torchscript": "eager", "pt2": "pt2e", "aoti": "pt2e", "onnx-qdq": "pt2e", "executorch": "pt2e"}

#: Backend of int8 by format, where it is not x86.
BACKENDS = {"onnx-qdq": "onnxruntime", "executorch": "xnnpack"}

_BATCH = 32
_SHOWN = 5
_ABOUT = ("model_name", "settings", "test_accuracy")


def run(args: Namespace) -> None:
    """Does what the arguments of the command say, and prints a line about the file.

    Errors: ``ValueError`` for arguments and files that do not fit, ``OSError`` for files that cannot be read or
    written, and what ``fold``, ``quantize`` and ``export`` raise.
    """
    # Through the door, as any user: what it holds is looked up when it is needed.
    deploy, quantized = importlib.import_module(__package__), importlib.import_module("torchvision_layers.quantized")
    output = Path(args.output)
    format, int8 = _format(args.format, output, args.int8)
    _check_options(args, format, int8)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output must be in a folder that exists, got {output}")
    checkpoint = _checkpoint(args.checkpoint)
    calibration = _calibration(args.calibration, args.channels) if int8 else None
    example = _example(args, checkpoint, calibration)
    with factory(args.model) as function:
        model = _model(function, args, checkpoint)
        if args.fold:
            model = deploy.fold(model, example)
            print("folded: batch norms and what else is constant went into the weights", flush=True)
        if calibration is not None:
            backend = args.backend or BACKENDS.get(format, "x86")
            batches = list(calibration.split(_BATCH))
            model = quantized.quantize(model, batches, backend=backend, engine=ENGINES[format])
            print(f"int8: calibrated on {len(calibration)} inputs, for {backend}", flush=True)
        done = deploy.export(
            model,
            example,
            output,
            format=format,
            classes=checkpoint.get("classes", ()),
            mean=args.mean,
            std=args.std,
            about={name: checkpoint[name] for name in _ABOUT if name in checkpoint},
        )
    shapes = ", ".join("×".join(map(str, shape)) for shape in done.shapes)
    print(
        f"{done.path}: {done.format}, {done.size / 1e6:.1f} MB, at most {done.difference:.1e} of the largest output "
        f"from the model, compared on {shapes}"
    )


def _format(format: str | None, output: Path, int8: bool) -> tuple[str, bool]:
    """The format, and whether it will hold int8."""
    if format is None:
        if output.suffix not in SUFFIXES:
            raise ValueError(f"--output must end in {', '.join(SUFFIXES)}, or --format be given; got {output}")
        format = SUFFIXES[output.suffix]
        if format == "onnx" and int8:
            format = "onnx-qdq"
    if format == "onnx" and int8:
        raise ValueError("--format onnx holds float; for int8 give --format onnx-qdq")
    return format, int8 or format == "onnx-qdq"


def _check_options(args: Namespace, format: str, int8: bool) -> None:
    if int8 and args.calibration is None:
        why = "--int8" if args.int8 else f"--format {format}"
        raise ValueError(
            f"{why} needs --calibration FILE: some 100 inputs as the model meets them, normalized, in one float32 "
            "tensor N×C×H×W, written by torch.save or numpy.save"
        )
    if args.image_size is not None and len(args.image_size) > 2:
        raise ValueError(f"--image-size must be one or two numbers, got {len(args.image_size)}")
    for option in ("calibration", "backend"):
        if not int8 and getattr(args, option) is not None:
            raise ValueError(f"--{option} is for int8 models; give --int8 too")


def _checkpoint(path: str) -> dict[str, Any]:
    """What a checkpoint holds, the weights under ``"model"``."""
    found = _loaded(path, "a checkpoint")
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        if found.get("kind", "float") != "float":
            raise ValueError(
                f"{path} is a checkpoint of {found['kind']} training, whose model is not the float one; give the "
                "checkpoint of float training, and --int8"
            )
        return found
    if isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values()):
        return {"model": found}
    raise ValueError(f"{path} is no checkpoint: it must hold a state_dict, or a dictionary with one under 'model'")


def _loaded(path: str, what: str) -> Any:
    with open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not zipfile.is_zipfile(path):
                raise ValueError(f"{path} is not {what}, or a damaged one") from error
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path} is not {what}, it holds more than tensors and numbers: {reason}") from error
        except Exception as error:  # for a damaged or foreign file torch raises almost anything, OSError too
            raise ValueError(
                f"{path} is not {what}, or a damaged one ({type(error).__name__} on reading it)"
            ) from error


def _calibration(path: str, channels: int) -> Tensor:
    if path.endswith(".npy"):
        import numpy as np

        with open(path, "rb") as file:
            try:
                found: Any = torch.from_numpy(np.load(file, allow_pickle=False))
            except Exception as error:  # numpy raises many kinds too
                raise ValueError(f"{path} is not an array of numpy.save, or a damaged one: {error}") from error
    else:
        found = _loaded(path, "a tensor of torch.save")
    if not isinstance(found, Tensor) or found.dtype != torch.float32:
        kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{path} must hold a float32 tensor, it holds {kind}")
    if found.dim() != 4 or found.shape[1] != channels or found.numel() == 0:
        raise ValueError(f"{path} must hold inputs of shape N×{channels}×H×W, it holds {list(found.shape)}")
    return found


def _example(args: Namespace, checkpoint: dict[str, Any], calibration: Tensor | None) -> Tensor:
    """Two inputs of the size that the model is for: those to calibrate on, or random ones."""
    size = args.image_size
    if calibration is not None:
        found = list(calibration.shape[2:])
        if size is not None and _pair(size) != found:
            raise ValueError(f"--image-size must be that of the calibration, {found}, got {_pair(size)}")
        return calibration[:2].clone()
    if size is None:
        settings = checkpoint.get("settings")
        size = [settings.get("image_size", 224) if isinstance(settings, dict) else 224]
    return torch.randn(2, args.channels, *_pair(size), generator=torch.Generator().manual_seed(0))


def _pair(size: Sequence[int]) -> list[int]:
    return [size[0], size[-1]]


def _model(function: Callable[..., nn.Module], args: Namespace, checkpoint: dict[str, Any]) -> nn.Module:
    """The model with the weights of the checkpoint, in eval mode."""
    classes = checkpoint.get("num_classes") if args.num_classes is None else args.num_classes
    arguments = {} if classes is None else {"num_classes": classes}
    size = checkpoint.get("model_arguments")  # width and depth, of the training script
    arguments |= size if isinstance(size, dict) else {}
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        call = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise ValueError(f"{args.model} must take ({call}): {error}") from error
    model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{args.model} must return a module, it returns a {type(model).__name__}")
    try:
        wrong = model.load_state_dict(checkpoint["model"], strict=False)
    except RuntimeError as error:  # for tensors of other shapes
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(f"{args.checkpoint} does not fit {args.model}: {_listed(problems, '; ')}") from error
    problems = [
        f"{what} {_listed(keys, ', ')}"
        for what, keys in (("missing", wrong.missing_keys), ("unexpected", wrong.unexpected_keys))
        if keys
    ]
    if problems:
        raise ValueError(f"{args.checkpoint} does not fit {args.model}: {'; '.join(problems)}")
    return model.eval()


def _listed(items: Sequence[str], separator: str) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more
