"""Trains a reference model, or tests a trained one.

python references/classification/train.py --model resnet18 --image-size 32 --output-dir outputs/resnet18
"""

import math
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from data import ON_BAD_IMAGE, ImageLoader, left_out, load_datasets
from models import build_model
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from tqdm import tqdm
from utils import (
    HelpFormatter,
    check_numbers,
    check_output_dir,
    deterministic_algorithms,
    evaluate,
    load_checkpoint,
    plot_curves,
    run_as_script,
    save_atomically,
    seed_everything,
)

# A run can only be resumed with the same; the rest (workers, paths) may change.
SETTINGS = (
    "dataset",
    "image_size",
    "batch_size",
    "epochs",
    "lr",
    "momentum",
    "weight_decay",
    "label_smoothing",
    "seed",
)


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a name from models/__init__.py")
    add_data_arguments(parser)
    parser.add_argument("--epochs", type=int, default=12, help="how often the training set is gone through")
    parser.add_argument("--lr", type=float, default=0.03, help="the highest learning rate of the one-cycle schedule")
    parser.add_argument("--momentum", type=float, default=0.9, help="of SGD, in the form of Nesterov")
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="of every parameter")
    parser.add_argument("--label-smoothing", type=float, default=0.1, help="of the cross-entropy")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of what is drawn in training")
    parser.add_argument("--output-dir", help="where checkpoints and curves go; without it, outputs/MODEL")
    parser.add_argument("--resume", metavar="PATH", help="a checkpoint.pth of an interrupted run, to go on from")
    parser.add_argument("--weights", metavar="PATH", help="a checkpoint.pth or model.pth whose weights to start from")
    parser.add_argument("--test-only", action="store_true", help="test --weights and train nothing")
    return parser


def add_data_arguments(parser: ArgumentParser) -> None:
    """Adds the options that :func:`load_data` reads."""
    parser.add_argument("--dataset", default="digits", help="digits or imagefolder")
    parser.add_argument("--data-path", metavar="DIR", help="for imagefolder: DIR/train and DIR/val, or DIR/CLASS")
    parser.add_argument("--image-size", type=int, default=64, help="side of the square the model sees")
    parser.add_argument("--batch-size", type=int, default=32, help="images in a batch")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images; 0 reads in this one")
    parser.add_argument("--on-bad-image", choices=ON_BAD_IMAGE, default="stop", help="what an unreadable image does")


def load_data(args: Namespace) -> tuple[ImageLoader, ImageLoader, list[str]]:
    """Loaders of the training and of the test set, and the names of the classes."""
    train_set, test_set, classes = load_datasets(args.dataset, args.data_path, args.image_size)

    def loader(dataset: torch.utils.data.Dataset, shuffle: bool) -> ImageLoader:
        return ImageLoader(
            dataset, args.batch_size, shuffle=shuffle, workers=args.workers, on_bad_image=args.on_bad_image
        )

    return loader(train_set, True), loader(test_set, False), classes


class EpochResult(NamedTuple):
    """Means over the images trained on, and how many batches were left out for holding fewer than two."""

    loss: float
    accuracy: float
    small_batches: int


def train_one_epoch(
    model: nn.Module,
    loader: ImageLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    epoch: int,
    label_smoothing: float = 0.0,
) -> EpochResult:
    """Trains on every batch of ``loader`` once, with a progress bar.

    Args:
        model: trained in place, put in training mode.
        loader: gives images and labels.
        optimizer: of the model's parameters.
        scheduler: stepped after each batch. Default: none.
        epoch: counted from 1, for messages.
        label_smoothing: of the cross-entropy. Default: ``0.0``.

    Raises:
        FloatingPointError: if the loss is not finite.
        ValueError: if no batch holds two readable images.
    """
    model.train()
    seen, loss_sum, correct, small_batches = 0, 0.0, 0, 0
    with deterministic_algorithms(), tqdm(total=len(loader.dataset), unit=" images", leave=False) as bar:
        bar.set_description(f"epoch {epoch}")
        for step, (images, labels) in enumerate(loader, start=1):
            if len(labels) < 2:  # batch normalisation has no variance of one value
                small_batches += 1
                continue
            output = model(images)
            loss = nn.functional.cross_entropy(output, labels, label_smoothing=label_smoothing)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch}, step {step}; try a lower lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            seen += len(labels)
            loss_sum += loss.item() * len(labels)
            correct += (output.argmax(dim=1) == labels).sum().item()
            bar.set_postfix(loss=f"{loss_sum / seen:.3f}", accuracy=f"{correct / seen:.1%}", refresh=False)
            bar.update(len(labels))
    if seen == 0:
        raise ValueError(f"epoch {epoch}: no batch holds two readable images to train on")
    return EpochResult(loss_sum / seen, correct / seen, small_batches)


def make_optimizer(model: nn.Module, args: Namespace, steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=args.lr,
        momentum=args.momentum,
        nesterov=args.momentum > 0,
        weight_decay=args.weight_decay,
    )
    # A warm-up that ends after exactly one step would have OneCycleLR divide by zero.
    warm_up = 0.2 if steps != 5 else 0.4
    scheduler = OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=warm_up, cycle_momentum=False)
    return optimizer, scheduler


def main(args: Namespace) -> dict[str, Any]:
    """Trains or tests as ``args`` of :func:`get_parser` say.

    Returns:
        ``history``, one entry an epoch with loss and accuracy of both sets, and the final ``test_accuracy``.
    """
    check_numbers(args)
    if args.test_only and args.weights is None:
        raise ValueError("test_only needs weights to test")
    if args.resume is not None and args.weights is not None:
        raise ValueError("resume and weights cannot be given together: a checkpoint that is resumed has its weights")
    train_loader, test_loader, classes = load_data(args)
    if args.test_only:
        accuracy = evaluate(load_trained(args.weights, args, classes), test_loader).accuracy
        print(f"{args.model}: test accuracy {accuracy:.2%}{left_out(test_loader)}")
        return {"history": [], "test_accuracy": accuracy}

    seed_everything(args.seed)
    model = build_model(args.model, len(classes))
    if args.weights is not None:
        model.load_state_dict(load_checkpoint(args.weights, args.model, len(classes))["model"])
    output_dir = check_output_dir(args.output_dir or f"outputs/{args.model}")
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings["training images"] = len(train_loader.dataset)  # with another number the schedule would not fit
    about = {"model_name": args.model, "num_classes": len(classes), "classes": classes, "settings": settings}
    optimizer, scheduler = make_optimizer(model, args, args.epochs * len(train_loader))
    history = []
    if args.resume is not None:
        history = resume(args.resume, about, model, optimizer, scheduler)

    start = time.perf_counter()
    for epoch in range(len(history) + 1, args.epochs + 1):
        seed_everything(args.seed, epoch)
        trained = train_one_epoch(
            model, train_loader, optimizer, scheduler, epoch=epoch, label_smoothing=args.label_smoothing
        )
        tested = evaluate(model, test_loader, label_smoothing=args.label_smoothing)
        if not math.isfinite(tested.loss):
            raise FloatingPointError(f"the test loss is {tested.loss} after epoch {epoch}; try a lower lr")
        history.append(
            {
                "epoch": epoch,
                "train_loss": trained.loss,
                "train_accuracy": trained.accuracy,
                "test_loss": tested.loss,
                "test_accuracy": tested.accuracy,
            }
        )
        small = f", batches of one image skipped: {trained.small_batches}" if trained.small_batches else ""
        print(
            f"epoch {epoch}/{args.epochs}: loss {trained.loss:.3f}, accuracy {trained.accuracy:.2%}; "
            f"test loss {tested.loss:.3f}, accuracy {tested.accuracy:.2%}{small}{left_out(train_loader, test_loader)}"
        )
        state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "history": history}
        save_atomically({**about, "model": model.state_dict(), **state}, output_dir / "checkpoint.pth")

    accuracy = history[-1]["test_accuracy"]
    save_atomically({**about, "model": model.state_dict(), "test_accuracy": accuracy}, output_dir / "model.pth")
    plot_curves(history, output_dir / "curves.png", title=f"{args.model} on {args.dataset}")
    seconds = time.perf_counter() - start
    print(f"{args.model}: test accuracy {accuracy:.2%} in {seconds:.0f} s{left_out(train_loader, test_loader)}")
    return {"history": history, "test_accuracy": accuracy}


def resume(
    path: str,
    about: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
) -> list[dict[str, float]]:
    """Takes model, optimizer and scheduler to where the checkpoint at ``path`` was written; returns the history.

    Raises:
        ValueError: if the checkpoint cannot be resumed, or is of a run that differs from ``about``.
    """
    checkpoint = load_checkpoint(path, about["model_name"], about["num_classes"], about.get("kind", "float"))
    if "optimizer" not in checkpoint:
        raise ValueError(f"{path} holds weights alone: they can be started from, but not resumed")
    check_same(path, "classes", checkpoint["classes"], about["classes"])
    for name, value in about["settings"].items():
        check_same(path, name, checkpoint["settings"][name], value)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    if scheduler is not None:
        scheduler.load_state_dict(checkpoint["scheduler"])
    return checkpoint["history"]


def load_trained(path: str | Path, args: Namespace, classes: list[str]) -> nn.Module:
    """The model in a checkpoint of a run on the classes, the dataset and the image size of ``args``.

    Raises:
        ValueError: if it is damaged, or of another model or run.
    """
    checkpoint = load_checkpoint(path, args.model, len(classes))
    check_same(path, "classes", checkpoint["classes"], classes)
    for name in ("dataset", "image_size"):
        check_same(path, name, checkpoint["settings"][name], getattr(args, name))
    model = build_model(args.model, len(classes))
    model.load_state_dict(checkpoint["model"])
    return model


def check_same(path: str | Path, name: str, found: object, wanted: object) -> None:
    """Raises ``ValueError`` where the checkpoint at ``path`` was made with another ``name``."""
    if found != wanted:
        raise ValueError(f"{path} was made with {name} {found}, not {wanted}")


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
