"""Speed and memory of torchvision's models in each deployment runtime.

    python benchmarks/deploy.py
    python benchmarks/deploy.py --only resnet18 mobilenet_v3_large --runtimes lowered onnx --images 1 --threads 1
    python benchmarks/deploy.py --growth --only resnet18 --runtimes lowered onnx --threads 1 --json growth.json

Each cell is ``time / memory / growth``. Time and memory are relative to the unmodified model in eager mode and NCHW, on
the same images. Time is the ratio of medians over rounds in which both take turns. Memory is the most that a call holds
at once, beyond the model and its input; runtimes other than torch do not report it. Growth is the time relative to the
first column of the same runtime. Each runtime of each model has its own process, because thread pools disturb each
other. The models have random weights and batch statistics of noise. Int8 is calibrated on eight images. Float formats
are exported from the folded model, and compiled models have frozen weights.

``--growth`` measures batches of 1 to 32 images and images of 96 to 384 pixels.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from layers import as_json, count, json_file, text, write
from measure import Ratio, conditions, interleave, peak_bytes, ratios
from quantized import SIZE, float_pair, running_on
from runtimes import BACKEND, COUNTED, RUNTIMES, Call
from tqdm import tqdm

MODELS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"),
    *("densenet121", "vit_b_32"),
)
#: Models for images of one size.
FIXED = ("vit_b_32",)


class Case(NamedTuple):
    """Images in one call, and the length of their sides."""

    images: int
    size: int

    def __str__(self) -> str:
        return f"{self.images}×{self.size}²"


GROWTH = (*(Case(n, SIZE) for n in (1, 2, 4, 8, 16, 32)), *(Case(1, size) for size in (96, 160, 288, 384)))


def measure(name: str, runtime: str, cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """A row for each case of one model in one runtime, measured in this process."""
    eager, _ = float_pair(name, rewritten=True)
    patches = torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch(recompile_limit=64)
    with torch.no_grad(), patches[0], patches[1], running_on(BACKEND):
        call = RUNTIMES[runtime](eager, torch.randn(8, 3, SIZE, SIZE))
        rows = []
        medians = dict[Case, float]()
        for case in cases:
            about = {"model": name, "runtime": runtime, "threads": torch.get_num_threads(), **case._asdict()}
            try:
                figures, medians[case] = measure_case(eager, call, case, runtime in COUNTED, rounds)
            except Exception as error:  # a runtime may not take all sizes
                figures = {"reason": reason(str(error))}
            else:
                figures["growth"] = medians[case] / medians[next(iter(medians))]
            rows.append({**about, **figures})
    return rows


def measure_case(eager: Call, call: Call, case: Case, is_counted: bool, rounds: int) -> tuple[dict[str, Any], float]:
    """Time and memory relative to eager mode, and the median of the seconds."""
    input = torch.randn(case.images, 3, case.size, case.size)
    calls = {"eager": partial(eager, input), "own": partial(call, input)}
    seconds = interleave(calls, rounds)
    peaks = [peak_bytes(c) for c in calls.values()] if is_counted else None
    figures = {"time": as_json(ratios(seconds)["own"]), "memory": peaks and peaks[1] / peaks[0]}
    return figures, statistics.median(seconds["own"])


def measure_in_subprocess(
    name: str, runtime: str, threads: int, cases: Sequence[Case], rounds: int
) -> list[dict[str, Any]]:
    """The rows of one model in one runtime, measured in a separate process; rows with a reason if that fails."""
    command = [sys.executable, __file__, "--only", name, "--runtimes", runtime, "--threads", str(threads), "--alone"]
    command += ["--rounds", str(rounds), "--cases", *(f"{case.images},{case.size}" for case in cases)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        rows: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
        return rows
    about = {"model": name, "runtime": runtime, "threads": threads, "reason": reason(result.stderr)}
    return [{**about, **case._asdict()} for case in cases]


def reason(error: str) -> str:
    """The last line of a traceback, which holds its message."""
    return (error.strip().splitlines() or ["no message"])[-1][:200]


def cell(row: dict[str, Any]) -> str:
    if "reason" in row:
        return "–"
    time = Ratio(row["time"]["ratio"], *row["time"]["quartiles"])
    return f"{time} / {text(row['memory'])} / {row['growth']:.2f}"


def parse_case(text: str) -> Case:
    images, size = map(count, text.split(","))
    return Case(images, size)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="models (default: all)")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), help="default: all")
    parser.add_argument("--images", nargs="+", type=count, default=[1, 8], help="batch sizes (default: 1 8)")
    parser.add_argument("--sizes", nargs="+", type=count, default=[SIZE], help=f"sides of images (default: {SIZE})")
    parser.add_argument("--growth", action="store_true", help="measure many batch sizes and sides in their place")
    parser.add_argument("--threads", nargs="+", type=count, default=[1, 2], help="torch threads (default: 1 2)")
    parser.add_argument("--rounds", type=count, default=11, help="rounds for each candidate (default: %(default)s)")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--alone", action="store_true", help="measure one model in this process and print JSON")
    parser.add_argument("--cases", nargs="+", type=parse_case, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    torch.set_num_threads(args.threads[0])
    chosen = GROWTH if args.growth else [Case(images, size) for size in args.sizes for images in args.images]
    cases = args.cases or chosen
    if args.alone:
        print(json.dumps(measure(args.only[0], args.runtimes[0], cases, args.rounds)))
        return
    report: dict[str, Any] = {"conditions": {**conditions(), "rounds": args.rounds}, "rows": []}
    del report["conditions"]["threads"]  # each row has its own
    print(*(f"{name}: {value}" for name, value in report["conditions"].items()), sep="\n")
    print("Each cell: time / memory relative to eager mode / growth")
    with tqdm(total=len(args.only) * len(args.threads) * len(args.runtimes), disable=None, leave=False) as bar:
        for name in args.only:
            own = [case for case in cases if name not in FIXED or case.size == SIZE]
            for threads in args.threads:
                title = f"{name}, threads: {threads}"
                tqdm.write(f"\n{title:<32}" + "".join(f"{case!s:<24}" for case in own))
                for runtime in args.runtimes:
                    bar.set_description(f"{name} in {runtime}")
                    rows = measure_in_subprocess(name, runtime, threads, own, args.rounds) if own else []
                    tqdm.write(f"  {runtime:<30}" + "".join(f"{cell(row):<24}" for row in rows).rstrip())
                    for failure in {row["reason"]: row for row in rows if "reason" in row}:
                        tqdm.write(f"    {failure}")
                    report["rows"] += rows
                    bar.update()
                    if args.json:
                        write(args.json, report)


if __name__ == "__main__":
    main()
