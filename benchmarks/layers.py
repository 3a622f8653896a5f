"""Speed of the layers, as multiples of the time of a bound: what cannot be left out of the computation, and no more.

    python benchmarks/layers.py
    python benchmarks/layers.py --only WSConv2d SqueezeExcitation --formats contiguous --json layers.json

Each cell of the table is ``inference / training / saved``. The first two are times, divided by that of the bound in the
same process: medians over many rounds, in which the candidates take turns. Training is forward and backward, to input
and parameters. The third is what one training forward keeps for its backward, in sizes of the input, parameters and
buffers left out. The aim is for our layer, in inference for its folded form where there is one. All on the CPU in
float32.

1.00 is as fast as the bound. ``~`` marks a figure whose quartiles over the rounds lie further apart than a tenth of it:
something else was running, or more rounds are needed. Figures found under different allocators do not compare. glibc
gives large blocks back at once, and the page faults on fresh ones double some figures at random; with these settings it
keeps what it has, as other allocators do:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 python benchmarks/layers.py
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import CASES, Case
from folded_cases import FOLDED_CASES
from measure import Ratio, conditions, inference_ratios, saved_bytes, training_ratios

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Figures(NamedTuple):
    """What is found of one candidate; in inference alone for one that is not trained."""

    inference: Ratio
    training: Ratio | None
    #: Multiple of the bytes of the input.
    saved: float | None


def measure(case: Case, memory_format: torch.memory_format, rounds: int) -> dict[str, Figures]:
    """The figures of all candidates, of the bound first."""
    candidates = case.build()
    input = torch.randn(case.shape).contiguous(memory_format=memory_format)
    modules = {name: candidate.module.to(memory_format=memory_format) for name, candidate in candidates.items()}
    trained = {name: module for name, module in modules.items() if candidates[name].trains}
    inference = inference_ratios(modules, input, rounds)
    training = training_ratios(trained, input, rounds) if trained else {}
    saved = {name: saved_bytes(module, input) / input.nbytes for name, module in trained.items()}
    return {name: Figures(inference[name], training.get(name), saved.get(name)) for name in modules}


def row(label: str, cells: Sequence[str]) -> str:
    return f"  {label:<13}" + "".join(f"  {cell:<23}" for cell in cells).rstrip()


def cell(inference: str, training: str, saved: str) -> str:
    return f"{inference:>6} / {training:>6} / {saved:>5}"


def text(figure: Ratio | float | None) -> str:
    if figure is None:
        return "–"
    if isinstance(figure, Ratio):
        return str(figure)
    return f"{figure:.2f}"


def record(case: Case, memory_format: str, figures: Mapping[str, Figures]) -> dict[str, Any]:
    """What one row of the table says, and the spread, for JSON."""

    return {
        "layer": case.layer.__name__,
        "options": dict(case.options),
        "shape": case.shape,
        "format": memory_format,
        "bound": next(iter(figures)),
        "aim": case.aim._asdict(),
        "candidates": {
            name: {"inference": spread(found.inference), "training": spread(found.training), "saved": found.saved}
            for name, found in figures.items()
        },
    }


def spread(found: Ratio | None) -> dict[str, Any] | None:
    return found and {"ratio": found.value, "quartiles": [found.low, found.high]}


def json_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that exists, got {text}")
    return path


def write(path: Path, report: Mapping[str, Any]) -> None:
    """As JSON, under another name first: an interrupted run leaves an earlier file whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def choose(names: Sequence[str], cases: Sequence[Case]) -> list[Case]:
    """Cases of the layers of these names or, where a name is no layer's, of all layers whose name it is a part of."""
    layers = list(dict.fromkeys(case.layer.__name__ for case in cases))
    chosen: set[str] = set()
    for name in names:
        found = [name] if name in layers else [layer for layer in layers if name.lower() in layer.lower()]
        if not found:
            raise ValueError(f"no layer is called {name!r}; there are {', '.join(layers)}")
        chosen.update(found)
    return [case for case in cases if case.layer.__name__ in chosen]


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="layers, or parts of their names; all by default")
    parser.add_argument("--folded", action="store_true", help="folded blocks instead, in inference")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write ratios and their spread there as well")
    parser.add_argument("--rounds", type=count, default=21, help="turns of each candidate (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="both by default")
    args = parser.parse_args(arguments)
    try:
        cases = FOLDED_CASES if args.folded else CASES
        cases = cases if args.only is None else choose(args.only, cases)
    except ValueError as error:
        parser.error(f"--only: {error}")

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    report: dict[str, Any] = {"conditions": {**conditions(), "rounds": args.rounds}, "rows": []}
    print(*(f"{name}: {value}" for name, value in report["conditions"].items()), sep="\n")
    print("Each cell: inference / training, of the bound's time / saved for backward, of the input's size")
    for case in cases:
        for number, name in enumerate(args.formats if len(case.shape) == 4 else ["contiguous"]):
            figures = measure(case, FORMATS[name], args.rounds)
            if number == 0:
                bound, *others = figures
                print(f"\n{case}", row("", [f"bound: {bound}", *others, "aim"]), sep="\n")
            print(row(name, [cell(*map(text, found)) for found in (*figures.values(), case.aim)]), flush=True)
            report["rows"].append(record(case, name, figures))
    if args.json:
        write(args.json, report)


if __name__ == "__main__":
    main()
