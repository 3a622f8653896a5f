"""Takes a trained reference model to int8: after training, or with some epochs of quantization-aware training.

python references/classification/train_quantization.py --model resnet18 --weights outputs/resnet18/model.pth
"""

import hashlib
from argparse import ArgumentParser, Namespace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import presets
import torch
from checkpoints import model_arguments, read_resumable, resumed, save_checkpoint
from engine import Options, train_one_epoch
from evaluation import evaluate
from loading import ImageLoader, left_out, load_data
from options import add_data_arguments
from torch import Tensor, nn
from trained import build_trained, read_trained
from training import Training
from utils import (
    HelpFormatter,
    check_numbers,
    check_output_dir,
    run_as_script,
    seed_everything,
)

from torchvision_layers import deploy, quantized

# Quantization-aware training can only be resumed with the same.
SETTINGS = ("dataset", "image_size", "batch_size", "engine", "backend", "epochs", "frozen_epochs", "lr", "seed")


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a name from models/__init__.py")
    parser.add_argument("--weights", metavar="PATH", required=True, help="a model.pth or checkpoint.pth of train.py")
    add_data_arguments(parser)
    parser.add_argument("--engine", default="eager", help="eager or pt2e")
    parser.add_argument(
        "--backend", default="x86", help="eager: x86, onednn or qnnpack; pt2e: x86, onnxruntime or xnnpack"
    )
    parser.add_argument("--calibration-batches", type=int, default=8, help="training batches to observe")
    parser.add_argument("--qat", action="store_true", help="train with fake quantization instead of calibrating")
    parser.add_argument("--epochs", type=int, default=2, help="of quantization-aware training")
    parser.add_argument(
        "--frozen-epochs",
        type=int,
        default=1,
        help="the last of them, in which ranges and batch statistics stay as they are; never the first",
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="of quantization-aware training")
    parser.add_argument("--seed", type=int, default=0, help="of the images that are drawn")
    parser.add_argument(
        "--resume", metavar="PATH", help="a checkpoint_qat.pth to go on from; auto: the last good one, if any"
    )
    parser.add_argument("--output-dir", help="where the int8 model goes; without it, outputs/MODEL")
    parser.add_argument("--report", action="store_true", help="print what became of each module")
    return parser


def check_engine(args: Namespace) -> None:
    """Quantizes a convolution alone, so that what does not work here is named before there is anything to lose."""
    model, images = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    try:
        if args.qat:
            quantized.prepare_qat(model, images, engine=args.engine, backend=args.backend)
        else:
            quantized.quantize(model, [images], engine=args.engine, backend=args.backend)
    except ImportError as error:
        raise ValueError(str(error)) from error


def with_twins(model: nn.Module) -> nn.Module:
    """``model``; where it has a layer without a twin, such as ``WSConv2d``, a folded copy, in which that is plain."""
    try:
        quantized.quantizable(model)
    except TypeError:
        return deploy.fold(model)
    return model


def calibrate(
    model: nn.Module, loader: ImageLoader, *, engine: str = "eager", backend: str = "x86", batches: int = 8
) -> nn.Module:
    """The int8 form of a trained model, its ranges observed on the first ``batches`` of ``loader``."""
    return quantized.quantize(with_twins(model), islice(loader, batches), engine=engine, backend=backend)


def train_aware(model: nn.Module, loader: ImageLoader, about: dict[str, Any], args: Namespace, path: Path) -> nn.Module:
    """The int8 form of a trained model after ``args.epochs`` of training with fake quantization.

    Each epoch leaves a checkpoint at ``path``, from which ``args.resume`` goes on.
    """
    images, _ = next(iter(loader), (None, None))
    if images is None:
        raise ValueError("none of the training images can be read")
    prepared = quantized.prepare_qat(
        with_twins(model).requires_grad_(True), images, engine=args.engine, backend=args.backend
    )
    training = Training(prepared, torch.optim.SGD(prepared.parameters(), lr=args.lr, momentum=0.9))
    state = resumed(args.resume, path, partial(read_resumable, about=about))
    if state is not None:
        with torch.no_grad():
            prepared.eval()(images)  # convert wants it to have seen some; what this changes is loaded next
        training.load(state, args.seed)

    while training.epoch <= args.epochs:
        epoch = training.epoch
        is_frozen = epoch > max(args.epochs - args.frozen_epochs, 1)
        if is_frozen and not prepared.is_frozen:  # a resumed model does not know that it was
            quantized.freeze(prepared)
        trained = train_one_epoch(training, loader, Options(seed=args.seed))
        training.end_epoch(
            {"epoch": epoch, "train_loss": trained.loss, "train_accuracy": trained.accuracy, "is_frozen": is_frozen}
        )
        # Testing here would let the ranges see the test images.
        print(
            f"epoch {epoch}/{args.epochs}{', frozen' if is_frozen else ''}: "
            f"loss {trained.loss:.3f}, accuracy {trained.accuracy:.2%}{left_out(loader)}"
        )
        save_checkpoint({**about, **training.state()}, path)
    return quantized.convert(prepared)


def main(args: Namespace) -> dict[str, float]:
    """Quantizes as ``args`` of :func:`get_parser` say; returns the test accuracy in float and in int8."""
    check_numbers(args)
    if args.resume is not None and not args.qat:
        raise ValueError("resume needs qat: there is nothing to resume without training")
    check_engine(args)
    train_loader, test_loader, classes = load_data(args)
    seed_everything(args.seed)
    checkpoint = read_trained(args.weights, args, classes)
    model = build_trained(checkpoint)
    output_dir = check_output_dir(args.output_dir or f"outputs/{args.model}")

    in_float = evaluate(model, test_loader, len(classes)).accuracy
    if args.qat:
        settings = {name: getattr(args, name) for name in SETTINGS}
        settings |= {"training images": len(train_loader.dataset), "weights": fingerprint(model)}
        about = {"model_name": args.model, "num_classes": len(classes), "classes": classes, "settings": settings}
        about["kind"] = "quantization-aware"
        about["model_arguments"] = model_arguments(checkpoint)
        converted = train_aware(model, train_loader, about, args, output_dir / "checkpoint_qat.pth")
    else:
        converted = calibrate(
            model, train_loader, engine=args.engine, backend=args.backend, batches=args.calibration_batches
        )
    in_int8 = evaluate(converted, test_loader, len(classes)).accuracy
    if args.report:
        print(quantized.report(converted))

    path = output_dir / f"int8{'_qat' if args.qat else ''}.{'pt2' if args.engine == 'pt2e' else 'pt'}"
    images, _ = next(iter(train_loader))
    write(converted, images[:2], path, args, classes, "pt2" if args.engine == "pt2e" else "torchscript")
    how = "quantization-aware" if args.qat else "post-training"
    print(
        f"{args.model} in {args.engine} on {args.backend}, {how}: test accuracy float {in_float:.2%}, "
        f"int8 {in_int8:.2%}; {path}{left_out(train_loader, test_loader)}"
    )
    return {"float": in_float, "int8": in_int8}


def fingerprint(model: nn.Module) -> str:
    """Tells weights from others."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def write(
    model: nn.Module, images: Tensor, path: Path, args: Namespace, classes: list[str], format: str
) -> deploy.Exported:
    """Exports a model of these scripts, with what one must know to use it."""
    mean, std = presets.normalization(args.dataset)
    about = {"model_name": args.model, "dataset": args.dataset, "image_size": args.image_size}
    return deploy.export(model, images, path, format=format, classes=classes, mean=mean, std=std, about=about)


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
