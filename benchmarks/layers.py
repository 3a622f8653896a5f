"""Speed of the layers relative to a baseline: only the operations that cannot be left out of the computation.

    python benchmarks/layers.py
    python benchmarks/layers.py --only WSConv2d SqueezeExcitation --formats contiguous --json layers.json
    python benchmarks/layers.py --device cuda

Each cell of the table is ``inference / training / saved``. The first two are times divided by the time of the baseline
in the same process: medians over many rounds, in which the candidates take turns. Training is a forward and a backward
pass, with gradients of input and parameters. The third is the memory that one training forward pass keeps for its
backward pass, without parameters and buffers, in multiples of the input size. The target applies to our layer; in
inference, to its folded form if there is one. On a CPU, everything runs in float32.

On a GPU, inference is in float16 and training in bfloat16, in eager mode, compiled, and in a CUDA graph. Events in its
stream measure the time, and the third figure is the most memory that a training step holds at once, by torch's
allocator. The last lines name each layer that is slower than the best equal peer by more than 2 %.

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
from cases import CASES, Candidate, Case
from devices import MODES, Setting, clocks, existing, in_mode, peak, timer, trains_in
from devices import conditions as device_conditions
from folded_cases import FOLDED_CASES
from measure import Call, Ratio, conditions, interleave, ratios, saved_bytes, training_step
from neck_cases import NECK_CASES
from token_cases import TOKEN_CASES
from torch import Tensor, nn
from window_cases import WINDOW_CASES

ALL_CASES = [*CASES, *NECK_CASES, *TOKEN_CASES, *WINDOW_CASES]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Figures(NamedTuple):
    """Measurements of one candidate; only inference if it is not trained."""

    inference: Ratio
    training: Ratio | None
    #: Multiples of the bytes of the input: kept for the backward pass, and held at once in a training step.
    saved: float | None
    peak: float | None = None


def measure(case: Case, memory_format: torch.memory_format, rounds: int, setting: Setting) -> dict[str, Figures]:
    """Figures of all candidates, with the baseline first."""
    torch.compiler.reset()
    candidates, input = build(case, memory_format, setting.device, setting.inference_dtype)

    def infer(module: nn.Module) -> Call:
        module.eval()
        return lambda: module(input)

    with torch.inference_mode():
        calls = {name: in_mode(setting.mode, own.module, infer) for name, own in candidates.items()}
        inference = ratios(interleave(calls, rounds, timer=timer(setting.device)))

    candidates, input = build(case, memory_format, setting.device, setting.training_dtype)
    trained = {
        name: own.module for name, own in candidates.items() if own.trains and trains_in(setting.mode, own.module)
    }
    calls = {
        name: in_mode(setting.mode, module, lambda module: training_step(module, input))
        for name, module in trained.items()
    }
    training = ratios(interleave(calls, rounds, timer=timer(setting.device))) if calls else {}
    saved = {name: saved_bytes(module, input) / input.nbytes for name, module in trained.items()}
    peaks: dict[str, float] = {}
    if setting.device.type != "cpu" and setting.mode != "graph":  # whose memory is allocated when it is captured
        peaks = {name: peak(call, setting.device) / input.nbytes for name, call in calls.items()}
    return {name: Figures(inference[name], training.get(name), saved.get(name), peaks.get(name)) for name in candidates}


def build(
    case: Case, memory_format: torch.memory_format, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Candidate], Tensor]:
    """The candidates of a case and their input, on a device."""
    candidates = case.build()
    for candidate in candidates.values():
        candidate.module.to(device, dtype, memory_format=memory_format)
    return candidates, torch.randn(case.shape).to(device, dtype, memory_format=memory_format)


def choose_settings(device: str, modes: Sequence[str] | None) -> list[Setting]:
    """A setting for each mode; dtypes are float32 on a CPU, float16 and bfloat16 on a GPU."""
    place = existing(device)
    if place.type == "cpu":
        if "graph" in (modes or ()):
            raise ValueError("--modes: a graph needs a GPU, such as --device cuda")
        return [Setting(place, mode) for mode in modes or ("eager",)]
    return [Setting(place, mode, torch.float16, torch.bfloat16) for mode in modes or MODES]


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


def record(case: Case, memory_format: str, figures: Mapping[str, Figures], mode: str = "eager") -> dict[str, Any]:
    """One row of the table, with quartiles, for JSON."""
    return {
        "layer": case.layer.__name__,
        "options": dict(case.options),
        "shape": case.shape,
        "format": memory_format,
        "mode": mode,
        "baseline": next(iter(figures)),
        "target": case.target._asdict(),
        "candidates": {
            name: {
                "inference": as_json(own.inference),
                "training": as_json(own.training),
                "saved": own.saved,
                "peak": own.peak,
            }
            for name, own in figures.items()
        },
    }


def as_json(ratio: Ratio | None) -> dict[str, Any] | None:
    return ratio and {"ratio": ratio.value, "quartiles": [ratio.low, ratio.high]}


def behind(rows: Sequence[Mapping[str, Any]], peers: Mapping[str, Sequence[str]], limit: float = 1.02) -> list[str]:
    """Rows in which our layer is slower than the best of its equal peers by more than a limit, one line each.

    Args:
        rows: results of :func:`record`.
        peers: names of the candidates that compute the same, by layer.
    """
    lines = []
    for row in rows:
        own = row["candidates"]["ours"]
        for phase in ("inference", "training"):
            others = {
                name: figures[phase]["ratio"]
                for name, figures in row["candidates"].items()
                if name in peers[row["layer"]] and figures[phase]
            }
            if others and own[phase]:
                best = min(others, key=others.__getitem__)
                ratio = own[phase]["ratio"] / others[best]
                if ratio > limit:
                    place = f"{row['layer']} {row['shape']} {row['format']} {row['mode']}"
                    lines.append(f"{place}: {phase} takes {ratio:.2f} of the time of {best}")
    return lines


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
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: eager on a CPU, all on a GPU")
    args = parser.parse_args(arguments)
    try:
        cases = FOLDED_CASES if args.folded else ALL_CASES
        cases = cases if args.only is None else choose(args.only, cases)
    except ValueError as error:
        parser.error(f"--only: {error}")
    try:
        settings = choose_settings(args.device, args.modes)
    except ValueError as error:
        parser.error(str(error))

    device = settings[0].device
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True  # all sizes are fixed
    torch.manual_seed(0)
    about = {**conditions(), **device_conditions(device), "rounds": args.rounds}
    report: dict[str, Any] = {"conditions": about, "rows": []}
    print(*(f"{name}: {value}" for name, value in about.items()), sep="\n")
    is_gpu = device.type != "cpu"
    memory = "memory of a step" if is_gpu else "memory saved"
    print(f"Each cell: inference / training time relative to the baseline / {memory} relative to the input")
    peers: dict[str, set[str]] = {}
    for case in cases:
        equal = {name for name, candidate in case.build().items() if candidate.is_equal} - {"ours", "folded"}
        peers.setdefault(case.layer.__name__, set()).update(equal)
        formats = args.formats if len(case.shape) == 4 else ["contiguous"]
        for number, (name, setting) in enumerate((name, setting) for name in formats for setting in settings):
            figures = measure(case, FORMATS[name], args.rounds, setting)
            if number == 0:
                baseline, *others = figures
                print(f"\n{case}", row("", [f"baseline: {baseline}", *others, "target"]), sep="\n")
            cells = [
                cell(text(own.inference), text(own.training), text(own.peak if is_gpu else own.saved))
                for own in figures.values()
            ]
            target = case.target._replace(saved=None) if is_gpu else case.target
            label = f"{name}, {setting.mode}" if len(settings) > 1 else name
            print(row(label, [*cells, cell(*map(text, target))]), flush=True)
            report["rows"].append(record(case, name, figures, setting.mode))
    if is_gpu:
        about["clocks after"] = clocks(device)
        print(f"\nclocks after: {about['clocks after']}", *behind(report["rows"], peers), sep="\n")
    if args.json:
        write(args.json, report)


if __name__ == "__main__":
    main()
