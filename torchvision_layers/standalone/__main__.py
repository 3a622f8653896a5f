"""The command ``python -m torchvision_layers.standalone``: writes a model as one file that needs only torch."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial

from .._utils.command import exit_status
from .write import write

__all__ = ["main"]

_DESCRIPTION = """\
Writes a model or a layer, with all code of torchvision_layers that it uses, to one readable file that needs only torch.
It has the same state_dict, and its outputs are equal to the bit.
"""

_EPILOG = """\
examples:
    %(prog)s references/classification/models/mobilenet_v3.py:mobilenet_v3_small -o mobilenet_v3_small.py
    %(prog)s references/classification/models/resnet.py:resnet18 -o resnet18_quantizable.py --quantizable
    %(prog)s torchvision_layers.nn:SqueezeExcitation -o squeeze_excitation.py

Exit status: 0; 2 after an error, with one line on stderr; 130 if interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status. ``argv`` defaults to the arguments of the process."""
    args = _parser().parse_args(argv)
    return exit_status(partial(_run, args), ValueError, TypeError, OSError, ImportError)


def _run(args: Namespace) -> None:
    path = write(args.model, args.output, quantizable=args.quantizable, force=args.force)
    print(f"{path}: {len(path.read_text(encoding='utf-8').splitlines())} lines")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m torchvision_layers.standalone",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="FILE.py:FUNCTION or package.module:FUNCTION: a function that returns a model, or a class",
    )
    parser.add_argument("-o", "--output", metavar="PATH", required=True, help="the file to write")
    parser.add_argument("--quantizable", action="store_true", help="replace each layer by its quantizable twin")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
