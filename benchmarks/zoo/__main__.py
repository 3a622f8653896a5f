"""Runs models of torchvision and timm through this package and through torch alone, and writes the page of the docs.

    python -m benchmarks.zoo
    python -m benchmarks.zoo --only resnet18 vgg11_bn --columns "eager x86" "FX x86" --again

Weights are random, from a seed; statistics of norms are stirred. Each column of each model has its own process, with
one thread and a time limit. Figures are added to ``zoo.json`` as they come, so a run that was interrupted continues; a
cell is run again if a version or a setting changed. ``--traceback`` prints the whole error of each failure.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from . import page, record
from .columns import COLUMNS, images
from .models import ZOO
from .run import run_alone


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ZOO, default=list(ZOO), metavar="NAME", help="models")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="default: all")
    parser.add_argument("--size", type=int, help="side of the images, except of models that fix theirs; default: 224")
    parser.add_argument("--limit", type=float, default=900, help="seconds for a column (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="also run cells that are recorded")
    parser.add_argument("--traceback", action="store_true", help="print the whole error of each failure")
    parser.add_argument("--json", type=Path, default=record.PATH, help="the record (default: the one of the docs)")
    args = parser.parse_args(arguments)

    cells = record.load(args.json)
    sizes = {name: ZOO[name].size if args.size is None or ZOO[name].is_fixed else args.size for name in args.only}
    expected = {
        (name, column): record.conditions(size, images(column)) for name, size in sizes.items() for column in COLUMNS
    }
    todo = [
        (name, column)
        for name in args.only
        for column in args.columns
        if args.again or cells.get(name, {}).get(column, {}).get("conditions") != expected[name, column]
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {
            pool.submit(run_alone, name, column, sizes[name], args.limit): (name, column) for name, column in todo
        }
        for i, future in enumerate(as_completed(futures)):
            name, column = futures[future]
            figures, traceback = future.result()
            cells.setdefault(name, {})[column] = {**figures, "conditions": expected[name, column]}
            record.save(_in_order(cells), args.json)
            print(f"{i + 1:>4}/{len(todo)}  {name}, {column}: {page.describe(figures)}", flush=True)
            if traceback and args.traceback:
                print(traceback, flush=True)
    if args.json == record.PATH:
        page.PATH.write_text(page.render(record.load()), encoding="utf-8")


def _in_order(cells: record.Record) -> dict[str, Any]:
    """The cells of models and columns that still exist."""
    return {
        name: {column: cells[name][column] for column in COLUMNS if column in cells[name]}
        for name in ZOO
        if name in cells
    }


if __name__ == "__main__":
    main()
