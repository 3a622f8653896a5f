"""Speed of the layers relative to a baseline: only the operations that cannot be left out of the computation.

    python benchmarks/layers.py
    python benchmarks/layers.py --only WSConv2d SqueezeExcitation --formats contiguous --json layers.json

Each cell of the table is ``inference / training / saved``. The first two are times divided by the time of the baseline
in the same process: medians over many rounds, in which the candidates take turns. Training is a forward and a backward
pass, with gradients of input and parameters. The third is the memory that one training forward pass keeps for its
backward pass, without parameters and buffers, in multiples of the input size. The target applies to our layer; in
inference, to its folded form if there is one. Everything runs on the CPU in float32.

1.00 is as fast as the baseline. ``~`` marks a figure whose quartiles over the rounds differ by more than a tenth of it:
something else was running, or more rounds are needed. Do not compare figures across allocators. glibc returns large
blocks to the system at once, and page faults on new ones double some figures at random. With these settings it keeps
them, as other allocators do:

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
from window_cases import WINDOW_CASES

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Figures(NamedTuple):
    """Measurements of one candidate; only inference if it is not trained."""

    inference: Ratio
    training: Ratio | None
    #: Multiple of the bytes of the input.
    saved: float | None


def measure(case: Case, memory_format: torch.memory_format, rounds: int) -> dict[str, Figures]:
    """Figures of all candidates, with the baseline first."""
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
    """One row of the table, with quartiles, for JSON."""
    return {
        "layer": case.layer.__name__,
        "options": dict(case.options),
        "shape": case.shape,
        "format": memory_format,
        "baseline": next(iter(figures)),
        "target": case.target._asdict(),
        "candidates": {
            name: {"inference": as_json(own.inference), "training": as_json(own.training), "saved": own.saved}
            for name, own in figures.items()
        },
    }


def as_json(ratio: Ratio | None) -> dict[str, Any] | None:
    return ratio and {"ratio": ratio.value, "quartiles": [ratio.low, ratio.high]}


def json_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in an existing folder, got {text}")
    return path


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Writes JSON atomically, so that an interrupted run does not damage an earlier file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def choose(names: Sequence[str], cases: Sequence[Case]) -> list[Case]:
    """Cases of the layers with these names. A name of no layer selects all layers whose names contain it."""
    layers = list(dict.fromkeys(case.layer.__name__ for case in cases))
    chosen: set[str] = set()
    for name in names:
        matches = [name] if name in layers else [layer for layer in layers if name.lower() in layer.lower()]
        if not matches:
            raise ValueError(f"no layer is called {name!r}; there are {', '.join(layers)}")
        chosen.update(matches)
    return [case for case in cases if case.layer.__name__ in chosen]


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="layers or parts of their names (default: all)")
    parser.add_argument("--folded", action="store_true", help="measure folded blocks in inference instead")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="also write ratios and quartiles to this file")
    parser.add_argument("--rounds", type=count, default=21, help="rounds for each candidate (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: both")
    args = parser.parse_args(arguments)
    try:
        cases = FOLDED_CASES if args.folded else [*CASES, *WINDOW_CASES]
        cases = cases if args.only is None else choose(args.only, cases)
    except ValueError as error:
        parser.error(f"--only: {error}")

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    report: dict[str, Any] = {"conditions": {**conditions(), "rounds": args.rounds}, "rows": []}
    print(*(f"{name}: {value}" for name, value in report["conditions"].items()), sep="\n")
    print("Each cell: inference / training time relative to the baseline / memory saved relative to the input")
    for case in cases:
        for number, name in enumerate(args.formats if len(case.shape) == 4 else ["contiguous"]):
            figures = measure(case, FORMATS[name], args.rounds)
            if number == 0:
                baseline, *others = figures
                print(f"\n{case}", row("", [f"baseline: {baseline}", *others, "target"]), sep="\n")
            print(row(name, [cell(*map(text, own)) for own in (*figures.values(), case.target)]), flush=True)
            report["rows"].append(record(case, name, figures))
    if args.json:
        write(args.json, report)


if __name__ == "__main__":
    main()
