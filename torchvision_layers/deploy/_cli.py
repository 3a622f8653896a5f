"""The command that writes a checkpoint to a file that runs without this package."""

from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import deploy, quantized
from .._utils.command import exit_status
from ._checkpoint import Checkpoint, load_calibration, load_checkpoint
from ._choosing import CHOICES
from ._example import check_example
from ._int8_options import add_int8_options, check_int8_options, int8_options
from ._named_model import named_function, usual_preprocessing
from ._photographs import PRESETS, Preprocessing, load_photographs
from .formats.format import Format
from .formats.table import FORMATS, LOWERED, check_suffix, default_format, list_suffixes

__all__ = ["main"]

_DESCRIPTION = """\
Writes a trained model to a file that runs without torchvision_layers: in Python or C++, on phones, in ONNX Runtime.
The model is folded first (batch norms become part of the weights). The file is loaded and compared with the model on
several batch and image sizes before it gets its name, so an earlier file survives every error.

{choices}
"""

_EPILOG = """\
examples:
  a checkpoint of references/classification/train.py, which contains its classes and its image size:
    %(prog)s references/classification/models/resnet.py:resnet18 outputs/resnet18/model.pth --output resnet18.onnx

  a model of torchvision, or of any package, with a state_dict:
    %(prog)s torchvision.models:resnet18 resnet18.pth --output resnet18.pt --image-size 224 \\
        --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225

  int8, calibrated with about 100 photographs in a folder, or with normalized images, N×3×H×W, in one file:
    %(prog)s torchvision.models:resnet18 resnet18.pth --output resnet18.onnx --int8 --calibration photos/
    %(prog)s timm:mobilenetv3_large_100 model.safetensors --output model.onnx --int8 --calibration photos/
    %(prog)s model.py:build weights.pth --output model.pt --int8 --calibration inputs.npy

Exit status: 0, or 2 with one line that describes the error, or 130 when interrupted.
"""

_BATCH_SIZE = 32
_PHOTOGRAPHS = 128


#: Errors that end in one line, also of the model's own code.
_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, AssertionError, LookupError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status. Default: the arguments of the process."""
    args = _parser().parse_args(argv)
    return exit_status(partial(_run, args), *_ERRORS)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m torchvision_layers.deploy",
        usage="%(prog)s MODEL CHECKPOINT --output PATH [options]",
        description=_DESCRIPTION.format(choices=CHOICES),
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="FILE.py:FUNCTION, package.module:FUNCTION or timm:NAME; the function returns the model, and is called "
        "with num_classes=N and model_arguments if the checkpoint contains them",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a model.pth or checkpoint.pth of references/classification/train.py, or a state_dict saved by torch.save "
        "or by safetensors",
    )
    parser.add_argument("--output", metavar="PATH", required=True, help="the file to write")
    parser.add_argument("--format", choices=tuple(FORMATS), help="default: chosen by the suffix of --output")
    parser.add_argument(
        "--lowered",
        action=BooleanOptionalAction,
        help="for pt2: write a program of oneDNN's kernels, which is fast on CPUs without a compiler, or the operators "
        "of the model; the default is lowered, except with --format",
    )
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument(
        "--image-size",
        type=_positive,
        nargs="+",
        metavar="PIXELS",
        help="height and width, or one number for both, to test the file with; default: that of the calibration, of "
        "the checkpoint, or of the preset",
    )
    inputs.add_argument("--channels", type=_positive, default=3, metavar="N", help="default: 3")
    inputs.add_argument(
        "--num-classes", type=_positive, metavar="N", help="passed to FUNCTION; default: the number in the checkpoint"
    )
    for option, meaning in (
        ("mean", "value to subtract from each channel"),
        ("std", "value to divide each channel by"),
    ):
        inputs.add_argument(
            f"--{option}",
            type=float,
            nargs="+",
            default=(),
            metavar="X",
            help=f"{meaning}, in photographs for the calibration and in the metadata; the file does not do it",
        )
    inputs.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="size, mean and std of photographs; default: those of the published weights of a model of timm or "
        "torchvision, or imagenet",
    )
    conversion = parser.add_argument_group("conversion")
    conversion.add_argument(
        "--no-fold", dest="fold", action="store_false", help="keep the layers as they are, including batch norms"
    )
    add_int8_options(parser, _PHOTOGRAPHS)
    return parser


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return number


def _run(args: Namespace) -> None:
    """Folds, quantizes and exports the model, and prints a line about the file.

    Errors: ``ValueError`` for options and files that do not fit together; ``OSError`` for files that cannot be read or
    written; and the errors of ``fold``, ``quantize`` and ``export``.
    """
    output = Path(args.output)
    format, is_int8 = _format(args.format, output, args.int8)
    _check_options(args, format, is_int8)
    format.require((*format.writer_packages, *format.reader_packages))
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output must be in an existing folder, got {output}")
    checkpoint = load_checkpoint(args.checkpoint)
    with named_function(args.model) as function:
        model = checkpoint.build_model(function, args.model, args.num_classes)
        preprocessing = _preprocessing(args, checkpoint, model)
        calibration = _calibration(args, preprocessing) if is_int8 else None
        example = _example(args, preprocessing, calibration)
        try:
            check_example(example, model)
        except TypeError as error:
            raise ValueError(
                f"{args.model} must return a model of one image; call deploy.export in Python for another: {error}"
            ) from error
        if args.fold:
            model = deploy.fold(model, example)
            print("folded: batch norms and other constants are now part of the weights", flush=True)
        if calibration is not None:
            assert format.engine is not None
            backend = args.backend or format.backend
            batches = list(calibration.split(_BATCH_SIZE))
            try:
                model = quantized.quantize(model, batches, backend=backend, engine=format.engine, **int8_options(args))
            except TypeError as error:
                raise TypeError(str(error).replace("allow_float=True", "--allow-float")) from error
            print(f"int8: calibrated on {len(calibration)} inputs, for {backend}", flush=True)
            if args.report:
                print(quantized.report(model), flush=True)
        is_known = args.preset is not None or (is_int8 and Path(args.calibration).is_dir())
        exported = deploy.export(
            model,
            example,
            output,
            format=format.name,
            lowered=_is_lowered(args, format),
            classes=checkpoint.classes,
            mean=preprocessing.mean if is_known else args.mean,
            std=preprocessing.std if is_known else args.std,
            about=checkpoint.about,
        )
    shapes = ", ".join("×".join(map(str, shape)) for shape in exported.shapes)
    print(
        f"{exported.path}: {exported.format}, {exported.size / 1e6:.1f} MB, differs from the model by at most "
        f"{exported.difference:.1e} of the largest output, compared on {shapes}"
    )


def _format(name: str | None, output: Path, is_int8: bool) -> tuple[Format, bool]:
    """The format, and whether the model will be int8."""
    by_suffix = default_format(output.suffix, is_int8)
    format = by_suffix if name is None else FORMATS[name]
    if format is None:
        raise ValueError(f"--output must end in {list_suffixes()}, or pass --format; got {output}")
    check_suffix("--output", output, format)
    if is_int8 and format.engine is None:
        remedy = default_format(format.suffix, is_int8=True)
        raise ValueError(f"--format {format.name} supports float only: pass --format {remedy and remedy.name} for int8")
    return format, is_int8 or not format.supports_float


def _is_lowered(args: Namespace, format: Format) -> bool:
    if args.lowered is None:
        return args.format is None and format.name == LOWERED.name
    return bool(args.lowered)


def _check_options(args: Namespace, format: Format, is_int8: bool) -> None:
    if args.lowered and format.name != LOWERED.name:
        raise ValueError(f"--lowered is for {LOWERED.name}, not for {format.name}")
    if args.image_size is not None and len(args.image_size) > 2:
        raise ValueError(f"--image-size must be one or two numbers, got {len(args.image_size)}")
    check_int8_options(args, LOWERED if _is_lowered(args, format) else format, is_int8)


def _preprocessing(args: Namespace, checkpoint: Checkpoint, model: nn.Module) -> Preprocessing:
    """The preset with the size, mean and std of the command line, or else with the size of the checkpoint."""
    preset = PRESETS[args.preset] if args.preset else usual_preprocessing(args.model, model)
    size = args.image_size or ([checkpoint.image_size] if checkpoint.image_size else preset.size)
    return replace(preset, size=(size[0], size[-1]), mean=args.mean or preset.mean, std=args.std or preset.std)


def _calibration(args: Namespace, preprocessing: Preprocessing) -> Tensor:
    folder = Path(args.calibration)
    if not folder.is_dir():
        return load_calibration(args.calibration, args.channels)
    inputs = load_photographs(folder, preprocessing, args.channels, _PHOTOGRAPHS)
    print(f"calibration: {len(inputs)} photographs, {preprocessing}", flush=True)
    return inputs


def _example(args: Namespace, preprocessing: Preprocessing, calibration: Tensor | None) -> Tensor:
    """Two inputs of the size that the model is for: calibration inputs, or random ones."""
    if calibration is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, args.channels, *preprocessing.size, generator=generator)
    size = list(calibration.shape[2:])
    if args.image_size is not None and list(preprocessing.size) != size:
        raise ValueError(f"--image-size must equal that of the calibration, {size}, got {list(preprocessing.size)}")
    return calibration[:2].clone()
