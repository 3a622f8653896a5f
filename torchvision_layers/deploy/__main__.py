"""The command ``python -m torchvision_layers.deploy``: a checkpoint becomes a file that runs without this package."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial

from .._utils.command import exit_status
from ._command import ENGINES, run

__all__ = ["main"]

_DESCRIPTION = """\
Writes a trained model to a file that runs without torchvision_layers: in Python or C++, on phones, in ONNX Runtime.
The model is folded first (batch norms go into the weights). The file is loaded back and compared with the model on
several batches and sizes of images before it gets its name, so that an earlier file survives every error.
"""

_EPILOG = """\
formats:
  torchscript  .pt    float or int8. Loads with torch.jit.load, in Python and in C++ (libtorch).
  pt2          .pt2   float or int8. Loads with torch.export.load, to run in Python or to compile.
  aoti         .pt2   float or int8, compiled for this kind of processor; needs a C++ compiler. Loads with
                      torch._inductor.aoti_load_package, or in C++.
  onnx         .onnx  float. Loads with ONNX Runtime and other runtimes of ONNX.
  onnx-qdq     .onnx  int8, as ONNX writes it; always with --calibration. Loads with ONNX Runtime.
  executorch   .pte   float or int8. Loads with the runtimes of executorch on phones and boards; holds for batches of
                      up to 16, and for images of up to twice the size.
All of them load with torchvision_layers.deploy.load(path) too. What a format needs that is not installed is named.

examples:
  a checkpoint of references/classification/train.py, which knows its classes and its image size:
    %(prog)s references/classification/models/resnet.py:resnet18 outputs/resnet18/model.pth --output resnet18.onnx

  a model of torchvision, or of any package, with a state_dict:
    %(prog)s torchvision.models:resnet18 resnet18.pth --output resnet18.pt --image-size 224 \\
        --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225

  int8, for servers and for phones; inputs.npy holds some 100 normalized images, N×3×H×W:
    %(prog)s model.py:build weights.pth --output model.pt --int8 --calibration inputs.npy
    %(prog)s model.py:build weights.pth --output model.pte --int8 --calibration inputs.npy

Exit status: 0, or 2 with one line that says what is wrong, or 130 when interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. Default: the arguments of the process."""
    args = _parser().parse_args(argv)
    return exit_status(partial(run, args), ValueError, TypeError, OSError, ImportError, RuntimeError)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m torchvision_layers.deploy",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="FILE.py:FUNCTION or package.module:FUNCTION; the function returns the model, and is called with "
        "num_classes=N, and what stands in model_arguments, where the checkpoint says so",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a model.pth or checkpoint.pth of references/classification/train.py, or a state_dict, of torch.save",
    )
    parser.add_argument("--output", metavar="PATH", required=True, help="the file to write")
    parser.add_argument(
        "--format", choices=("onnx", *ENGINES), help="see below; without it, the suffix of --output tells"
    )
    shape = parser.add_argument_group("inputs")
    shape.add_argument(
        "--image-size",
        type=_positive,
        nargs="+",
        metavar="PIXELS",
        help="height and width, or one for both, to try the file with; without it, that of the calibration, of the "
        "checkpoint, or 224",
    )
    shape.add_argument("--channels", type=_positive, default=3, metavar="N", help="default: 3")
    shape.add_argument(
        "--num-classes", type=_positive, metavar="N", help="passed to FUNCTION; without it, what the checkpoint says"
    )
    for option, what in (("mean", "what is subtracted from each channel"), ("std", "what each channel is divided by")):
        shape.add_argument(
            f"--{option}",
            type=float,
            nargs="+",
            default=(),
            metavar="X",
            help=f"{what}, noted in the file for who prepares inputs; the file does not do it",
        )
    way = parser.add_argument_group("ways")
    way.add_argument(
        "--no-fold", dest="fold", action="store_false", help="leave the layers as they are, batch norms included"
    )
    way.add_argument("--int8", action="store_true", help="quantize the model; needs --calibration")
    way.add_argument(
        "--calibration",
        metavar="FILE",
        help="inputs to find ranges of int8 with: one float32 tensor N×C×H×W, of torch.save, or .npy of numpy.save",
    )
    way.add_argument(
        "--backend",
        metavar="NAME",
        help="kernels that int8 is for: x86, or for torchscript also onednn and qnnpack; without it, x86, but "
        "onnxruntime for onnx-qdq and xnnpack for executorch",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
