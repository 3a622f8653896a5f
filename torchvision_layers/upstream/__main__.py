"""The command ``python -m torchvision_layers.upstream``: a stable layer becomes a change to a torchvision checkout."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .._utils.atomic import atomic_path
from .._utils.command import exit_status
from .change import propose

__all__ = ["main"]

_DESCRIPTION = """\
Adds a stable layer to a checkout of torchvision: its file in torchvision/ops (or the class of that name, replaced where
it stands), its name in torchvision/ops/__init__.py, its tests in test/test_ops.py and its line in docs/source/ops.rst.
Beside the checkout it writes the text of a pull request. The checkout must be clean, and nothing in it is committed.
Tests and checklist come from a clone of the repository of torchvision_layers; what pip installs has no such records.
"""

_EPILOG = """\
examples:
  %(prog)s LayerScale --checkout ~/vision --dry-run | less
  %(prog)s LayerScale --checkout ~/vision && (cd ~/vision && python -m pytest test/test_ops.py -k LayerScale)

Exit status: 0, or 2 with one line that says what is wrong, or 130 when interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. Default: the arguments of the process."""
    args = _parser().parse_args(argv)
    return exit_status(partial(_run, args), ValueError, OSError, ImportError)


def _run(args: Namespace) -> None:
    change = propose(args.layer, args.checkout, args.repository)
    if args.dry_run:
        print(change.diff(), end="")
        return
    text = Path(args.pull_request or f"PULL_REQUEST_{args.layer}.md")
    if text.exists():
        raise ValueError(f"--pull-request must be a new file, {text} exists")
    if change.checkout.resolve() in text.resolve().parents:
        raise ValueError(f"--pull-request must be outside of the checkout, got {text}")
    if not text.parent.is_dir():
        raise FileNotFoundError(f"--pull-request must be in a folder that exists, got {text}")
    change.write()
    with atomic_path(text) as temporary:
        temporary.write_text(change.pull_request, encoding="utf-8")
    for file in change.files:
        print(f"{change.checkout / file}: written")
    print(f"{text}: text of the pull request")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m torchvision_layers.upstream",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("layer", metavar="LAYER", help="a name of torchvision_layers.nn, such as SqueezeExcitation")
    parser.add_argument("--checkout", required=True, metavar="DIR", help="top of a clean checkout of torchvision 0.29")
    parser.add_argument("--dry-run", action="store_true", help="print the change as a diff, and write nothing")
    parser.add_argument(
        "--pull-request",
        metavar="FILE",
        help="where the text of the pull request goes, outside of the checkout; without it, PULL_REQUEST_LAYER.md here",
    )
    parser.add_argument(
        "--repository",
        metavar="DIR",
        help="clone of the repository of torchvision_layers; without it, the one that the package is imported from",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
