"""A trained model in every format that it can be deployed in: size, how near to the model, time.

python references/classification/deployment.py --model resnet18 --weights outputs/resnet18/model.pth
"""

import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from data import ImageLoader
from torch import nn
from train import add_data_arguments, load_data, load_trained
from train_quantization import calibrate, write
from utils import check_output_dir, run_as_script, seed_everything

from torchvision_layers import deploy

#: Format and, where the model goes to int8 first, engine and suffix of each file.
FILES: dict[str, tuple[str, str | None, str]] = {
    "torchscript": ("torchscript", None, "pt"),
    "torchscript int8": ("torchscript", "eager", "pt"),
    "pt2": ("pt2", None, "pt2"),
    "aoti": ("aoti", None, "pt2"),
    "aoti int8": ("aoti", "pt2e", "pt2"),
    "onnx": ("onnx", None, "onnx"),
    "onnx-qdq": ("onnx-qdq", "pt2e", "onnx"),
    "executorch": ("executorch", None, "pte"),
}
LATENCY_BATCH = 16


class Row(NamedTuple):
    """One file, or why there is none."""

    model: str
    file: str
    size: int = 0
    difference: float = 0.0
    latency: float = 0.0
    problem: str = ""


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a name from models/__init__.py")
    parser.add_argument("--weights", metavar="PATH", required=True, help="a model.pth or checkpoint.pth of train.py")
    add_data_arguments(parser)
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), help="which to write")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the latency measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", help="where the files go; without it, outputs/MODEL")
    return parser


def main(args: Namespace) -> list[Row]:
    """Writes the files, prints their table and returns its rows."""
    loader, _, classes = load_data(args)
    model = load_trained(args.weights, args, classes).eval()
    output_dir = check_output_dir(args.output_dir or f"outputs/{args.model}")
    seed_everything(args.seed)
    rows = write_files(model, loader, args, classes, output_dir, args.files, args.rounds)
    print(f"{NOTE}\n\n{table(rows)}")
    return rows


NOTE = (
    "Files that run without torchvision_layers: size; largest difference to the model that was written, relative to\n"
    f"its largest output; time relative to the float model in Python, {LATENCY_BATCH} images at once."
)


def write_files(
    model: nn.Module,
    loader: ImageLoader,
    args: Namespace,
    classes: list[str],
    output_dir: Path,
    files: Sequence[str],
    rounds: int,
) -> list[Row]:
    """Folds the model, takes it to int8 where need be, and writes and times each of the files."""
    sample = next(iter(loader))[0][:LATENCY_BATCH]
    folded = deploy.fold(model, sample)
    rows: list[Row] = []
    written: dict[str, tuple[deploy.Exported, deploy.Loaded]] = {}
    for file in files:
        format, engine, suffix = FILES[file]
        path = output_dir / f"{file.replace(' ', '_')}.{suffix}"
        try:
            exported_model = folded if engine is None else calibrate(folded, loader, engine=engine)
            exported = write(exported_model, sample[:2], path, args, classes, format)
        except (ImportError, FileNotFoundError) as error:  # of a package, or of a compiler
            rows.append(Row(args.model, file, problem=str(error)))
            continue
        written[file] = exported, deploy.load(path)
    calls: list[Callable[[], object]] = [lambda: model(sample)]
    calls += [lambda call=loaded: call(sample) for _, loaded in written.values()]
    in_float, *seconds = measure(calls, rounds)
    for (file, (exported, _)), latency in zip(written.items(), seconds, strict=True):
        rows.append(Row(args.model, file, exported.size, exported.difference, latency / in_float))
    return sorted(rows, key=lambda row: files.index(row.file))


@torch.inference_mode()
def measure(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each call, all taken in turn in this process, so that a slow moment slows all of them."""
    seconds: list[list[float]] = [[] for _ in calls]
    for i in range(rounds + 3):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if i >= 3:  # the first rounds warm up
                times.append(time.perf_counter() - start)
    return [median(times) for times in seconds]


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns."""
    cells = [("model", "file", "size", "equal within", "time")]
    for row in rows:
        if row.problem:
            cells.append((row.model, row.file, row.problem, "", ""))
        else:
            figures = (f"{row.size / 1e6:.1f} MB", f"{row.difference:.1e}", f"{row.latency:.2f}")
            cells.append((row.model, row.file, *figures))
    return columns(cells, left=2)


def columns(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells as text in columns, of which so many begin at the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    places = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    texts = [[place(cell, width) for place, cell, width in zip(places, line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in texts)


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
