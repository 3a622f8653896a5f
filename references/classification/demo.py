"""The main job, end to end: train on real images, fuse, calibrate, convert to int8, write, load elsewhere, compare.

python references/classification/demo.py --output-dir outputs

At the end it writes the same models in the formats of deployment.py.
"""

import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import presets
import torch
import train
from checkpoints import atomic_path
from deployment import FILES as EVERY_FILE
from deployment import LATENCY_BATCH, NOTE, columns, measure, not_written, write_files
from deployment import Row as FileRow
from deployment import table as files_table
from evaluation import Predictions, predict
from loading import ImageLoader, load_data
from matplotlib.figure import Figure
from models import MODELS
from torch import Tensor
from train_quantization import calibrate, with_twins, write
from trained import load_trained
from utils import (
    HelpFormatter,
    check_numbers,
    check_output_dir,
    run_as_script,
    seed_everything,
)

from torchvision_layers import quantized

MODEL_NAMES = ("resnet18", "mobilenet_v2")
BACKEND = "x86"
FILES = ("torchscript", "torchscript int8", "pt2", "aoti", "onnx", "onnx-qdq")


class Row(NamedTuple):
    """One line of the table."""

    model: str
    parameters: int
    accuracy_float: float
    accuracy_fused: float
    accuracy_int8: float
    accuracy_reloaded: float
    is_reload_equal: bool
    bytes_float: int
    bytes_int8: int
    latency_fused: float
    latency_int8: float

    def broken_promises(self) -> list[str]:
        """What this model should have reached and has not."""
        promises = {
            "float test accuracy is at least 98 %": self.accuracy_float >= 0.98,
            "fused test accuracy is that of float": self.accuracy_fused == self.accuracy_float,
            "int8 test accuracy is within 1 point of float": abs(self.accuracy_int8 - self.accuracy_float) <= 0.01,
            "the reloaded int8 model gives the same outputs": self.is_reload_equal,
        }
        return [f"{self.model}: not true that {promise}" for promise, is_kept in promises.items() if not is_kept]


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--output-dir", default="outputs", help="where a folder for each model goes")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        metavar="MODEL",
        default=list(MODEL_NAMES),
        help="names from models/__init__.py",
    )
    default = train.get_parser().get_default
    parser.add_argument(
        "--epochs", type=int, default=default("epochs"), help="how often the training set is gone through"
    )
    parser.add_argument(
        "--image-size", type=int, default=default("image_size"), help="side of the square the models see"
    )
    parser.add_argument(
        "--files",
        nargs="+",
        choices=EVERY_FILE,
        metavar="FILE",
        default=list(FILES),
        help="which to write; deployment.py --help lists them",
    )
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the latency measurement")
    return parser


def main(args: Namespace) -> list[Row]:
    """Runs the job for each model, prints the table and returns its rows; ``ValueError`` for a promise not kept."""
    check_numbers(args)
    output_dir = check_output_dir(args.output_dir)
    start = time.perf_counter()
    rows, files = zip(*(run(name, output_dir / name, args) for name in args.models), strict=True)
    file_rows = [row for found in files for row in found]
    print(
        "\nTest accuracy in float, fused, in int8, and in int8 reloaded without torchvision_layers; whether its\n"
        f"outputs are equal to the bit; size of the files; time relative to float, {LATENCY_BATCH} images at once."
    )
    print(f"\n{table(rows)}\n\n{NOTE}\n\n{files_table(file_rows)}")
    print(f"\n{time.perf_counter() - start:.0f} s; pictures, models and files are in {output_dir}")
    broken = [promise for row in rows for promise in row.broken_promises()]
    broken += not_written(file_rows)
    if broken:
        raise ValueError("; ".join(broken))
    return list(rows)


def run(name: str, output_dir: Path, args: Namespace) -> tuple[Row, list[FileRow]]:
    """The job for one model, and its files."""
    print(f"\n{name}: training on scikit-learn's digits")
    arguments = ["--model", name, "--output-dir", str(output_dir), "--epochs", str(args.epochs)]
    train_args = train.get_parser().parse_args([*arguments, "--image-size", str(args.image_size)])
    train.main(train_args)

    train_loader, test_loader, classes = load_data(train_args)
    model = load_trained(output_dir / "model.pth", train_args, classes).eval()

    print(f"{name}: fusing, calibrating, converting")
    fused = quantized.quantizable(with_twins(model))
    quantized.fuse_model(fused)
    seed_everything(train_args.seed)
    int8 = calibrate(model, train_loader, backend=BACKEND)
    with atomic_path(output_dir / "report.txt") as temporary:
        temporary.write_text(f"{quantized.report(int8)}\n", encoding="utf-8")

    in_float, in_fused, in_int8 = (predict(m, test_loader) for m in (model, fused, int8))
    sample = torch.stack([test_loader.dataset[i][0] for i in range(LATENCY_BATCH)])
    artefact = output_dir / "int8.pt"
    write(int8, sample[:2], artefact, train_args, classes, "torchscript")
    accuracy, outputs = evaluate_elsewhere(artefact)
    plot_predictions(test_loader, in_int8, classes, output_dir / "predictions.png", f"{name} in int8")

    latencies = measure([lambda m=m: m(sample) for m in (model, fused, int8)], args.rounds)
    row = Row(
        name,
        sum(parameter.numel() for parameter in model.parameters()),
        in_float.accuracy,
        in_fused.accuracy,
        in_int8.accuracy,
        accuracy,
        torch.equal(outputs, in_int8.outputs),
        (output_dir / "model.pth").stat().st_size,
        artefact.stat().st_size,
        latencies[1] / latencies[0],
        latencies[2] / latencies[0],
    )
    print(f"{name}: writing {', '.join(args.files)}")
    return row, write_files(model, train_loader, train_args, classes, output_dir, args.files, args.rounds)


def evaluate_elsewhere(path: Path) -> tuple[float, Tensor]:
    """Accuracy and outputs of an artefact in a fresh process that cannot import ``torchvision_layers``."""
    outputs_path = path.with_name("reloaded_outputs.pth")
    script = Path(__file__).with_name("artefact.py")
    command = [sys.executable, str(script), str(path), "--outputs", str(outputs_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise ValueError(f"{path} cannot be tested in a process of its own: {result.stderr.strip()}")
    print(result.stdout.strip())
    saved = torch.load(outputs_path, weights_only=True)
    return saved["accuracy"], saved["outputs"]


def plot_predictions(loader: ImageLoader, result: Predictions, classes: list[str], path: Path, title: str) -> None:
    """A sheet of test images with predicted and true label; every mistake is on it, first and framed in red."""
    wrong = (result.predictions != result.labels).nonzero().flatten().tolist()
    right = (result.predictions == result.labels).nonzero().flatten().tolist()
    columns, lines = 10, 6
    shown = (wrong + right)[: columns * lines]
    figure = Figure(figsize=(columns * 1.05, lines * 1.3 + 0.4), layout="constrained")
    figure.suptitle(f"{title}: {len(wrong)} of {len(result.labels)} test images wrong, framed in red")
    for axes, index in zip(figure.subplots(lines, columns).flat, shown, strict=False):
        image = presets.to_display(loader.dataset[index][0], "digits")
        axes.imshow(image.permute(1, 2, 0).numpy())
        predicted, true = classes[result.predictions[index]], classes[result.labels[index]]
        is_wrong = predicted != true
        axes.set_title(f"{predicted}, true {true}", fontsize=9, color="red" if is_wrong else "black")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=is_wrong, color="red", linewidth=3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns."""
    header = (
        "model",
        "parameters",
        "float",
        "fused",
        "int8",
        "reloaded",
        "equal",
        "float file",
        "int8 file",
        "fused time",
        "int8 time",
    )
    cells = [header]
    for row in rows:
        accuracies = (row.accuracy_float, row.accuracy_fused, row.accuracy_int8, row.accuracy_reloaded)
        cells.append(
            (
                row.model,
                f"{row.parameters:,}",
                *(f"{accuracy:.2%}" for accuracy in accuracies),
                "yes" if row.is_reload_equal else "no",
                f"{row.bytes_float / 1e6:.1f} MB",
                f"{row.bytes_int8 / 1e6:.1f} MB",
                f"{row.latency_fused:.2f}",
                f"{row.latency_int8:.2f}",
            )
        )
    return columns(cells)


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
