"""Size, accuracy and time of exported files of trained models, in every format whose runtime is installed.

    python benchmarks/formats.py
    python benchmarks/formats.py --only efficientnet_lite0 --formats openvino "openvino int8"

The models are the two of the demo, trained here on the digits of scikit-learn, and EfficientNet-Lite0 with weights
trained on ImageNet. Each is folded, quantized for the backend of the format, exported for one image, and run in a new
process that cannot import this package. The figures: size in MB; signal over error of the logits in dB and the share of
equal classes, both relative to the float model; the share of images with the class of the model that was exported; and
the time of an image on one thread, relative to a program of the float model with which it takes turns. Core ML only has
a size, because only Apple's systems run it.

Formats without a runtime here are left out; a run in another environment adds its rows to the record.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accuracy import compare
from layers import count, json_file, write
from measure import conditions
from quantized import build_model
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

# The path of the reference scripts is set by quantized.py.
from common.data.loading import load_data  # isort: skip
from common.data.photographs import CALIBRATION, EVALUATION, crops  # isort: skip
from common.runs.pretrained import CLASSES, load_pretrained  # isort: skip
from common.runs.restore import load_trained  # isort: skip
from common.settings import ModelCard, TrainingSettings  # isort: skip
from train import get_parser, train  # isort: skip

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "source" / "benchmarks_formats.json"
CHILD = Path(__file__).with_name("run_file.py")
PRETRAINED = "efficientnet_lite0"
MODELS = ("resnet18", "mobilenet_v2", PRETRAINED)
#: Numbers of images: to calibrate, and to compare.
CALIBRATED, COMPARED = 64, 96


class Row(NamedTuple):
    """A format, and the engine and the backend of int8; ``None`` for float."""

    format: str
    engine: str | None = None
    backend: str = ""
    lowered: bool = False


#: The suffixes of formats, of those without one ``.pt2``.
SUFFIXES = {
    "coreml": ".mlpackage",
    "coreml-float32": ".mlpackage",
    "executorch": ".pte",
    "litert": ".tflite",
    "onnx": ".onnx",
    "onnx-qdq": ".onnx",
    "openvino": ".xml",
    "torchscript": ".pt",
}
ROWS = {
    "pt2": Row("pt2", lowered=True),
    "pt2 int8": Row("pt2", "pt2e", "x86", lowered=True),
    "torchscript": Row("torchscript"),
    "torchscript int8": Row("torchscript", "eager", "x86"),
    "aoti": Row("aoti"),
    "aoti int8": Row("aoti", "pt2e", "x86"),
    "onnx": Row("onnx"),
    "onnx-qdq": Row("onnx-qdq", "pt2e", "onnxruntime"),
    "openvino": Row("openvino"),
    "openvino int8": Row("openvino", "pt2e", "onnxruntime"),
    "litert": Row("litert"),
    "litert int8": Row("litert", "pt2e", "litert"),
    "coreml": Row("coreml"),
    "coreml-float32": Row("coreml-float32"),
    "coreml int8": Row("coreml", "pt2e", "x86"),
    "executorch": Row("executorch"),
    "executorch int8": Row("executorch", "pt2e", "xnnpack"),
}


def load(name: str, folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained model, and images to calibrate and to compare it on."""
    if name == PRETRAINED:
        model = build_model(name, CLASSES).eval()
        load_pretrained(model, name)
        return model, crops(CALIBRATION, CALIBRATED, 224, seed=0), crops(EVALUATION, COMPARED, 224, seed=1)
    settings = TrainingSettings.from_args(get_parser().parse_args(["--model", name, "--output-dir", str(folder)]))
    train(settings)
    trained, tested, classes = load_data(settings.data)
    card = ModelCard(name, settings.data.dataset, settings.data.image_size, classes)
    images = [torch.stack([loader.dataset[i][0] for i in range(COMPARED)]) for loader in (trained, tested)]
    return load_trained(folder / "model.pth", card).eval(), images[0][:CALIBRATED], images[1]


@torch.no_grad()
def measure(
    model: nn.Module, calibration: Tensor, images: Tensor, row: Row, rounds: int, folder: Path
) -> dict[str, Any]:
    """The figures of one file."""
    exported_model = deploy.fold(model, images[:1])
    if row.engine is not None:
        batches = list(calibration.split(8))
        exported_model = quantized.quantize(exported_model, batches, engine=row.engine, backend=row.backend)
    options = {"lowered": True} if row.lowered else {}
    path = folder / f"model{SUFFIXES.get(row.format, '.pt2')}"
    file = deploy.export(exported_model, images[:1], path, format=row.format, **options)
    figures: dict[str, Any] = {"megabytes": file.size / 1e6}
    if row.format.startswith("coreml"):  # runs on Apple's systems only
        return figures
    deploy.export(model, images[:1], folder / "float.pt2", format="pt2", lowered=False)
    torch.save(images, folder / "images.pt")
    command = [sys.executable, str(CHILD), row.format, str(file.path), str(folder), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{file.path.name} must run alone: {done.stderr[-1000:]}")
    result = torch.load(folder / "result.pt", weights_only=True)
    int8 = torch.cat([exported_model(image[None]) for image in images])
    is_same = (int8.argmax(1) == result["logits"].argmax(1)).double().mean()
    kept = compare(model(images), result["logits"])
    return {**figures, **kept, "same as the model": float(is_same), "time": result["time"]}


def describe(figures: dict[str, Any]) -> str:
    """The figures of a file in one line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL", help="default: all")
    parser.add_argument("--formats", nargs="+", choices=ROWS, default=list(ROWS), metavar="FILE", help="default: all")
    parser.add_argument("--rounds", type=count, default=30, help="default: 30")
    parser.add_argument("--record", type=json_file, default=RECORD, help="default: the record of the docs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: dict[str, Any] = json.loads(args.record.read_text())["rows"] if args.record.exists() else {}
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            model, calibration, images = load(name, Path(folder))
            for file in args.formats:
                row = ROWS[file]
                with tempfile.TemporaryDirectory() as place:
                    try:
                        figures = measure(model, calibration, images, row, args.rounds, Path(place))
                    except ImportError as error:  # names what to install
                        print(f"{name}: {file} is left out: {error}", flush=True)
                        continue
                rows[f"{name}: {file}"] = figures
                print(f"{name}: {file}: {describe(figures)}", flush=True)
                ordered = [f"{model}: {file}" for model in MODELS for file in ROWS]
                rows = {key: rows[key] for key in ordered if key in rows}
                write(args.record, {"conditions": conditions(), "rows": rows})


if __name__ == "__main__":
    main()
