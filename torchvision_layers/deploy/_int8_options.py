"""Options of the command for int8: the arguments of ``quantize``."""

from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from typing import Any

from ..quantized import Percentile
from ..quantized.engine import load_engine
from ..quantized.ranges import check_ranges
from .formats.format import Format
from .formats.table import FORMATS

__all__ = ["add_int8_options", "check_int8_options", "int8_options"]

#: Options that are passed to ``quantize`` under their own names, if they are given.
_PASSED = (
    *("allow_float", "check", "dynamic_sizes", "exclude", "per_channel", "ranges", "rounding", "tolerance", "vnni"),
)


def add_int8_options(parser: ArgumentParser, photographs: int) -> None:
    """Adds a group of options. Those that are not given are ``None`` or false."""
    group = parser.add_argument_group("int8")
    group.add_argument("--int8", action="store_true", help="quantize the model; needs --calibration")
    group.add_argument(
        "--calibration",
        metavar="PATH",
        help=f"a folder with photographs (up to {photographs} are read), or normalized images in one float32 tensor "
        "N×C×H×W, saved by torch.save, or by numpy.save as .npy",
    )
    group.add_argument("--report", action="store_true", help="print what became of each module")
    group.add_argument("--backend", metavar="NAME", help="kernels to quantize for; default: those of the format")
    group.add_argument(
        "--vnni", action="store_true", default=None, help="for onnxruntime: every x86 CPU that runs the file has VNNI"
    )
    group.add_argument(
        "--ranges",
        type=_ranges,
        metavar="RULE",
        help="of activations: histogram (default), minmax, percentile, mse, auto, or a percentile such as 99.9",
    )
    group.add_argument("--rounding", choices=("nearest", "gptq"), help="of weights; default: nearest")
    group.add_argument("--exclude", nargs="+", metavar="PATH", help="modules to leave in float, or patterns of them")
    group.add_argument(
        "--tolerance", type=float, metavar="DB", help="leave modules in float until the outputs are as exact as this"
    )
    group.add_argument(
        "--allow-float", action="store_true", default=None, help="leave layers in float that cannot be int8"
    )
    for option, meaning in (
        ("per-channel", "a scale for each channel of a weight (default), or one for all"),
        ("dynamic-sizes", "images of every size, or of that of the calibration; for formats other than torchscript"),
        ("check", "compare the int8 model with the model (default)"),
    ):
        group.add_argument(f"--{option}", action=BooleanOptionalAction, help=meaning)


def _ranges(text: str) -> Any:
    try:
        return Percentile(float(text))
    except ValueError:
        pass
    try:
        return check_ranges(text)
    except ValueError as error:
        raise ArgumentTypeError(
            f"must be histogram, minmax, percentile, mse, auto or a number above 0 and at most 100, got {text!r}"
        ) from error


def int8_options(args: Namespace) -> dict[str, Any]:
    """The arguments of ``quantize`` that the command line gives, without backend and engine."""
    return {name: value for name in _PASSED if (value := getattr(args, name)) is not None}


def check_int8_options(args: Namespace, format: Format, is_int8: bool) -> None:
    """Errors: ``ValueError`` for options that do not go together; ``ImportError`` if the engine is not installed."""
    if not is_int8:
        given = [name for name in ("calibration", "backend", "report") if getattr(args, name)] + list(
            int8_options(args)
        )
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} is for int8 models: pass --int8 too")
        return
    if args.calibration is None:
        option = "--int8" if args.int8 else f"--format {format.name}"
        raise ValueError(
            f"{option} needs --calibration PATH: a folder with about 100 typical photographs, or normalized inputs in "
            "one float32 tensor N×C×H×W, saved by torch.save or numpy.save"
        )
    assert format.engine is not None
    backend = args.backend or format.backend
    load_engine(format.engine).choose_backend(backend)
    if not format.supports(format.engine, backend):
        others = [other.name for other in FORMATS.values() if other.supports(format.engine, backend)]
        raise ValueError(
            f"--backend {backend} does not go with {format.name}: pass --format {' or '.join(others)}, or no --backend"
        )
    if args.vnni and backend != "onnxruntime":
        raise ValueError(
            f"--vnni is for the backend onnxruntime, got {backend}: other backends always or never need it"
        )
