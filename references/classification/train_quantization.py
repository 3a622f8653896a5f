"""Takes a trained reference model to int8: after training, or with some epochs of quantization-aware training.

python references/classification/train_quantization.py --model resnet18 --weights outputs/resnet18/model.pth
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from itertools import islice

import torch
from artefact import save_artefact
from data import ImageLoader, left_out
from torch import nn
from train import add_data_arguments, load_data, load_trained, train_one_epoch
from utils import check_numbers, check_output_dir, evaluate, run_as_script, seed_everything

from torchvision_layers import quantized


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a name from models/__init__.py")
    parser.add_argument("--weights", metavar="PATH", required=True, help="a model.pth or checkpoint.pth of train.py")
    add_data_arguments(parser)
    parser.add_argument("--backend", default="x86", help="x86, onednn or qnnpack")
    parser.add_argument("--calibration-batches", type=int, default=8, help="training batches to observe")
    parser.add_argument("--qat", action="store_true", help="train with fake quantization instead of calibrating")
    parser.add_argument("--epochs", type=int, default=2, help="of quantization-aware training")
    parser.add_argument("--lr", type=float, default=1e-3, help="of quantization-aware training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", help="where the int8 model goes; without it, outputs/MODEL")
    return parser


def calibrate(
    model: nn.Module, loader: ImageLoader, *, backend: str = "x86", batches: int = 8
) -> quantized.QuantizableModel:
    """The int8 form of a trained model, its ranges observed on the first ``batches`` of ``loader``."""
    return quantized.quantize(model, islice(loader, batches), backend=backend)


def train_aware(
    model: nn.Module, loader: ImageLoader, *, backend: str = "x86", epochs: int = 2, lr: float = 1e-3, seed: int = 0
) -> quantized.QuantizableModel:
    """The int8 form of a trained model after ``epochs`` of training with fake quantization, the last one frozen."""
    prepared = quantized.prepare_qat(model, backend=backend)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=lr, momentum=0.9)
    for epoch in range(1, epochs + 1):
        if epoch == epochs and epochs > 1:
            quantized.freeze(prepared)
        seed_everything(seed, epoch)
        train_one_epoch(prepared, loader, optimizer, epoch=epoch)
    return quantized.convert(prepared)


def main(args: Namespace) -> dict[str, float]:
    """Quantizes as ``args`` of :func:`get_parser` say; returns the test accuracy in float and in int8."""
    check_numbers(args)
    if args.backend not in torch.backends.quantized.supported_engines:
        raise ValueError(f"backend must be x86, onednn or qnnpack; got {args.backend!r}")
    train_loader, test_loader, classes = load_data(args)
    seed_everything(args.seed)
    model = load_trained(args.weights, args, classes)
    output_dir = check_output_dir(args.output_dir or f"outputs/{args.model}")

    in_float = evaluate(model, test_loader).accuracy
    if args.qat:
        converted = train_aware(
            model, train_loader, backend=args.backend, epochs=args.epochs, lr=args.lr, seed=args.seed
        )
    else:
        converted = calibrate(model, train_loader, backend=args.backend, batches=args.calibration_batches)
    in_int8 = evaluate(converted, test_loader).accuracy

    path = output_dir / ("int8_qat.pt" if args.qat else "int8.pt")
    save_artefact(converted, path, describe(args.model, classes, args.dataset, args.image_size, args.backend))
    how = "quantization-aware" if args.qat else "post-training"
    print(
        f"{args.model} on {args.backend}, {how}: test accuracy float {in_float:.2%}, int8 {in_int8:.2%}; "
        f"{path}{left_out(train_loader, test_loader)}"
    )
    return {"float": in_float, "int8": in_int8}


def describe(model_name: str, classes: list[str], dataset: str, image_size: int, backend: str) -> dict[str, object]:
    """What an artefact says of itself."""
    return {
        "model_name": model_name,
        "classes": classes,
        "dataset": dataset,
        "image_size": image_size,
        "backend": backend,
    }


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
