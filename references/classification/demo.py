"""The whole path of a model: train on real images, fuse, calibrate, convert to int8, export, reload, compare.

python references/classification/demo.py --output-dir outputs

It exports the same models to the formats of deployment.py. At the end, a model with weights trained on ImageNet
classifies photographs in float and in int8.
"""

import logging
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from common.cli import HelpFormatter, check_numbers, run_as_script, training_parser
from common.data.loading import ImageLoader, load_data
from common.data.presets import to_display
from common.exporting import FILES, export_files, export_model
from common.pretrained_demo import MODEL, classify_photographs
from common.quantization import calibrate, fold_unsupported
from common.runs.files import atomic_path, check_output_dir
from common.runs.reproducibility import seed_everything
from common.runs.restore import load_trained
from common.settings import ModelCard, Settings, TrainingSettings
from common.tables.files import CAPTION, FileRow, failed_exports, files_table
from common.tables.text import columns
from common.timing import LATENCY_BATCH, median_seconds
from common.training.evaluation import Predictions, predict
from common.training.run import train
from matplotlib.figure import Figure
from models import MODELS
from torch import Tensor

from torchvision_layers import quantized

DEFAULT_MODELS = ["resnet18", "mobilenet_v2"]
DEFAULT_FILES = ["torchscript", "torchscript int8", "pt2", "onnx", "onnx-qdq"]  # compiled ones take a minute each
BACKEND = "x86"
#: Passes over the training set; ResNet-18 needs fewer.
EPOCHS, EPOCHS_OF_RESNET = 7, 4


@dataclass(frozen=True)
class DemoSettings(Settings):
    """Training, files and timing of each model."""

    epochs: int | None
    image_size: int
    files: list[str]
    rounds: int


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

    def failures(self) -> list[str]:
        """The promises of the demo that this model breaks."""
        promises = {
            "float test accuracy is at least 98 %": self.accuracy_float >= 0.98,
            "fused test accuracy is that of float": self.accuracy_fused == self.accuracy_float,
            "int8 test accuracy is within 1 point of float": abs(self.accuracy_int8 - self.accuracy_float) <= 0.01,
            "the reloaded int8 model gives the same outputs": self.is_reload_equal,
        }
        return [f"{self.model} breaks a promise: {promise}" for promise, is_kept in promises.items() if not is_kept]


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--output-dir", default="outputs", help="parent of one directory per model")
    add(
        "--models",
        nargs="+",
        choices=MODELS,
        metavar="MODEL",
        default=DEFAULT_MODELS,
        help="names from models/__init__.py",
    )
    add("--epochs", type=int, help=f"passes over the training set (default: {EPOCHS}, {EPOCHS_OF_RESNET} for resnet18)")
    add("--image-size", type=int, default=36, help="side of the square input images")
    add(
        "--files",
        nargs="+",
        choices=FILES,
        metavar="FILE",
        default=DEFAULT_FILES,
        help="files to write; deployment.py --help lists them",
    )
    add("--rounds", type=int, default=20, help="rounds of the latency measurement")
    return parser


def main(args: Namespace) -> list[Row]:
    """Runs the demo for each model, prints the table and returns its rows; ``ValueError`` if a promise is broken."""
    check_numbers(args)
    settings = DemoSettings.from_args(args)
    output_dir = check_output_dir(args.output_dir)
    logging.getLogger("torch").setLevel(logging.ERROR)  # importing torchao logs a warning
    start = time.perf_counter()
    rows, files = zip(*(run(name, output_dir / name, settings) for name in args.models), strict=True)
    photographs = classify_photographs(output_dir / f"{MODEL}_imagenet")
    file_rows = [row for model_files in files for row in model_files]
    print(
        "\nTest accuracy in float, fused, in int8, and in int8 reloaded without torchvision_layers; whether its\n"
        f"outputs are bit-equal; size of the files; time relative to float, batches of {LATENCY_BATCH} images."
    )
    print(f"\n{table(rows)}\n\n{CAPTION}\n\n{files_table(file_rows)}\n\n{photographs}")
    print(f"\n{time.perf_counter() - start:.0f} s; pictures, models and files are in {output_dir}")
    failures = [failure for row in rows for failure in row.failures()] + failed_exports(file_rows)
    if failures:
        raise ValueError("; ".join(failures))
    return list(rows)


def run(name: str, output_dir: Path, settings: DemoSettings) -> tuple[Row, list[FileRow]]:
    """Runs the demo for one model."""
    print(f"\n{name}: training on scikit-learn's digits")
    epochs = settings.epochs or (EPOCHS_OF_RESNET if name == "resnet18" else EPOCHS)
    argv = ["--model", name, "--output-dir", str(output_dir), "--epochs", str(epochs)]
    argv += ["--image-size", str(settings.image_size), "--channels-last"]
    training = TrainingSettings.from_args(training_parser().parse_args(argv))
    train(training)

    train_loader, test_loader, classes = load_data(training.data)
    card = ModelCard(name, training.data.dataset, settings.image_size, classes)
    model = load_trained(output_dir / "model.pth", card).eval()

    print(f"{name}: fusing, calibrating, converting")
    fused = quantized.quantizable(fold_unsupported(model))
    quantized.fuse_model(fused)
    seed_everything(training.data.seed)
    int8 = calibrate(model, train_loader, backend=BACKEND)
    with atomic_path(output_dir / "report.txt") as temporary:
        temporary.write_text(f"{quantized.report(int8)}\n", encoding="utf-8")

    models = (model, fused, int8)
    predictions = [predict(m, test_loader) for m in models]
    sample = torch.stack([test_loader.dataset[i][0] for i in range(LATENCY_BATCH)])
    path = output_dir / "int8.pt"
    export_model(int8, sample[:2], path, card, "torchscript")
    accuracy, outputs = evaluate_in_new_process(path)
    plot_predictions(test_loader, predictions[2], classes, output_dir / "predictions.png", f"{name} in int8")

    with torch.inference_mode():
        latencies = median_seconds([lambda m=m: m(sample) for m in models], settings.rounds)
    row = Row(
        name,
        sum(parameter.numel() for parameter in model.parameters()),
        *(prediction.accuracy for prediction in predictions),
        accuracy,
        torch.equal(outputs, predictions[2].outputs),
        (output_dir / "model.pth").stat().st_size,
        path.stat().st_size,
        latencies[1] / latencies[0],
        latencies[2] / latencies[0],
    )
    print(f"{name}: writing {', '.join(settings.files)}")
    seed = training.data.seed
    files = export_files(model, train_loader, card, output_dir, settings.files, rounds=settings.rounds, seed=seed)
    return row, files


def evaluate_in_new_process(path: Path) -> tuple[float, Tensor]:
    """Accuracy and outputs of an exported model in a new process that cannot import ``torchvision_layers``."""
    outputs_path = path.with_name("reloaded_outputs.pth")
    script = Path(__file__).with_name("evaluate_exported.py")
    command = [sys.executable, str(script), str(path), "--outputs", str(outputs_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise ValueError(f"{path} cannot be tested in a new process: {result.stderr.strip()}")
    print(result.stdout.strip())
    content = torch.load(outputs_path, weights_only=True)
    return content["accuracy"], content["outputs"]


def plot_predictions(loader: ImageLoader, result: Predictions, classes: list[str], path: Path, title: str) -> None:
    """Plots test images with predicted and true labels; all mistakes come first, framed in red."""
    wrong = (result.predictions != result.labels).nonzero().flatten().tolist()
    right = (result.predictions == result.labels).nonzero().flatten().tolist()
    width, height = 10, 6
    figure = Figure(figsize=(width * 1.05, height * 1.3 + 0.4), layout="constrained")
    figure.suptitle(f"{title}: {len(wrong)} of {len(result.labels)} test images wrong, framed in red")
    for axes, index in zip(figure.subplots(height, width).flat, (wrong + right)[: width * height], strict=False):
        image = to_display(loader.dataset[index][0], "digits")
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
    """The rows as text."""
    header = ("model", "parameters", "float", "fused", "int8", "reloaded", "equal")
    cells = [(*header, "float file", "int8 file", "fused time", "int8 time")]
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
