"""Writes a trained model in every format that it can be deployed in, and tells size, error and time of each file.

python references/classification/deployment.py --model resnet18 --weights outputs/resnet18/model.pth

The model is folded first, and for int8 calibrated on training images. Each file is compared with the model before it
gets its name, and runs without torchvision_layers.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from loading import ImageLoader, left_out, load_data
from options import add_data_arguments
from torch import Tensor, nn
from train_quantization import calibrate, write
from trained import load_trained
from utils import HelpFormatter, check_numbers, check_output_dir, run_as_script, seed_everything

from torchvision_layers import deploy


class File(NamedTuple):
    """A format, what runs it and, where the model goes to int8 first, by which engine and for which backend."""

    format: str
    suffix: str
    reader: str
    engine: str = ""
    backend: str = "x86"


FILES = {
    "torchscript": File("torchscript", "pt", "torch, in Python and C++"),
    "torchscript int8": File("torchscript", "pt", "torch, in Python and C++", "eager"),
    "pt2": File("pt2", "pt2", "torch, in Python"),
    "aoti": File("aoti", "pt2", "torch, in Python and C++, on this kind of processor"),
    "aoti int8": File("aoti", "pt2", "torch, in Python and C++, on this kind of processor", "pt2e"),
    "onnx": File("onnx", "onnx", "onnxruntime and others"),
    "onnx-qdq": File("onnx-qdq", "onnx", "onnxruntime and others; in int8", "pt2e", "onnxruntime"),
    "executorch": File("executorch", "pte", "ExecuTorch"),
    "executorch int8": File("executorch", "pte", "ExecuTorch", "pt2e", "xnnpack"),
}
LATENCY_BATCH = 16


class Row(NamedTuple):
    """One file, or the problem for which there is none: the model's, or that something is not installed here."""

    model: str
    file: str
    size: int = 0
    difference: float = 0.0
    latency: float = 0.0
    problem: str = ""
    is_missing: bool = False


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, epilog=list_files(), formatter_class=HelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a name from models/__init__.py")
    parser.add_argument("--weights", metavar="PATH", required=True, help="a model.pth or checkpoint.pth of train.py")
    add_data_arguments(parser)
    parser.add_argument(
        "--files",
        nargs="+",
        choices=FILES,
        metavar="FILE",
        help="which to write, as listed below, names of two words in quotes; without it, all",
    )
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the latency measurement")
    parser.add_argument("--seed", type=int, default=0, help="of the images to calibrate on")
    parser.add_argument("--output-dir", help="where the files go; without it, outputs/MODEL")
    return parser


def main(args: Namespace) -> list[Row]:
    """Writes the files, prints their table and returns its rows; ``ValueError`` where a format refused the model."""
    check_numbers(args)
    loader, _, classes = load_data(args)
    model = load_trained(args.weights, args, classes).eval()
    output_dir = check_output_dir(args.output_dir or f"outputs/{args.model}")
    rows = write_files(model, loader, args, classes, output_dir, args.files or list(FILES), args.rounds)
    print(f"{NOTE}\n\n{table(rows)}\n\n{args.model}: files are in {output_dir}{left_out(loader)}")
    if refused := not_written(rows):
        raise ValueError("; ".join(refused))
    return rows


NOTE = (
    "Files that run without torchvision_layers: size; largest difference to what was written, float or int8,\n"
    f"relative to its largest output; time relative to the float model in Python, {LATENCY_BATCH} images at once."
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
    seed_everything(args.seed)
    sample = first_images(loader, LATENCY_BATCH)
    folded = deploy.fold(model, sample)
    rows: list[Row] = []
    written: dict[str, tuple[deploy.Exported, deploy.Loaded]] = {}
    for file in files:
        format, _, _, engine, backend = FILES[file]
        path = output_dir / file_name(file)
        seed_everything(args.seed)  # so that a file is the same whichever others are written
        try:
            final = calibrate(folded, loader, engine=engine, backend=backend) if engine else folded
            exported = write(final, sample[:2], path, args, classes, format)
        except (ImportError, FileNotFoundError) as error:  # of a package, or of a compiler
            rows.append(Row(args.model, file, problem=str(error), is_missing=True))
            continue
        except (RuntimeError, TypeError) as error:  # of a format that cannot hold the model, or gives other values
            rows.append(Row(args.model, file, problem=str(error)))
            continue
        written[file] = exported, deploy.load(path)
    calls: list[Callable[[], object]] = [lambda: model(sample)]
    calls += [lambda call=loaded: call(sample) for _, loaded in written.values()]
    in_float, *seconds = measure(calls, rounds)
    for (file, (exported, _)), latency in zip(written.items(), seconds, strict=True):
        rows.append(Row(args.model, file, exported.size, exported.difference, latency / in_float))
    return sorted(rows, key=lambda row: files.index(row.file))


def file_name(file: str) -> str:
    return f"{file.replace(' ', '_')}.{FILES[file].suffix}"


def first_images(loader: ImageLoader, count: int) -> Tensor:
    """So many images of ``loader``, which come again where it has fewer; ``ValueError`` where none can be read."""
    batches, found = [], 0
    for images, _ in loader:
        batches.append(images)
        found += len(images)
        if found >= count:
            break
    if not batches:
        raise ValueError("none of the training images can be read")
    return torch.cat(batches).repeat(-(-count // found), 1, 1, 1)[:count]


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


def not_written(rows: Sequence[Row]) -> list[str]:
    """The files that a format refused to hold; one for which something is not installed is none of them."""
    return [f"{row.model} was not written as {row.file}" for row in rows if row.problem and not row.is_missing]


def list_files() -> str:
    """What ``--files`` may name, for the help."""
    lines = [("file", "name", "runs in"), *((file, file_name(file), entry.reader) for file, entry in FILES.items())]
    needs = (
        'Int8 other than TorchScript needs pip install ".[pt2e]", onnx and onnx-qdq need ".[onnx]", executorch needs\n'
        "pip install executorch, aoti a C++ compiler. What is missing stands in the table, and the others are written."
    )
    return f"{columns(lines, left=3)}\n\n{needs}"


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns; a problem takes the place of all figures."""
    cells: list[tuple[str, ...]] = [("model", "file", "size", "equal within", "time")]
    for row in rows:
        if row.problem:
            cells.append((row.model, row.file, " ".join(row.problem.split())))
        else:
            figures = (f"{row.size / 1e6:.1f} MB", f"{row.difference:.1e}", f"{row.latency:.2f}")
            cells.append((row.model, row.file, *figures))
    return columns(cells, left=2)


def columns(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells as text in columns, of which so many begin at the left. A shorter line ends in a text of any length."""
    count = len(lines[0])
    widths = [max(len(line[i]) for line in lines if len(line) == count or i < len(line) - 1) for i in range(count)]
    places = [str.ljust if i < left else str.rjust for i in range(count)]
    texts = []
    for line in lines:
        texts.append([place(cell, width) for place, cell, width in zip(places, line, widths, strict=False)])
    return "\n".join("  ".join(cells).rstrip() for cells in texts)


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
