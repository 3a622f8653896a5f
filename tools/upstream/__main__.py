"""The command ``python -m tools.upstream LAYER CHECKOUT``."""

from argparse import ArgumentParser

from .proposal import propose


def main(argv: list[str] | None = None) -> None:
    """Runs the command with ``argv``, by default the arguments of the process."""
    parser = ArgumentParser(
        prog="python -m tools.upstream",
        description="Adds a stable layer, its tests and its line in the docs to a checkout of torchvision, commits "
        "nothing, and prints the text of a pull request. See docs/source/upstream.rst.",
    )
    parser.add_argument("layer", metavar="LAYER", help="a name in torchvision_layers.nn, such as SqueezeExcitation")
    parser.add_argument("checkout", metavar="CHECKOUT", help="the top folder of a clean checkout of torchvision 0.29")
    args = parser.parse_args(argv)
    try:
        print(propose(args.layer, args.checkout), end="")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
