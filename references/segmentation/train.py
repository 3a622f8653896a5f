"""Trains a segmentation model on scenes of digits, or tests a trained one.

python references/segmentation/train.py @references/segmentation/recipes/unet_resnet18.txt
python references/segmentation/train.py --test-only --weights outputs/unet_resnet18/model.pth
"""

import time
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from checkpoints import build, load, save
from evaluation import Result, evaluate
from pictures import draw_predictions
from scenes import CLASSES, Scenes, test_scenes, training_scenes
from segmenters import MODELS
from shared import (
    HelpFormatter,
    RecipeParser,
    check_numbers,
    check_output_dir,
    deterministic_algorithms,
    run_as_script,
    seed_everything,
)
from torch import nn

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True)}


def get_parser() -> ArgumentParser:
    parser = RecipeParser(description=__doc__, formatter_class=HelpFormatter, fromfile_prefix_chars="@")
    add = parser.add_argument_group("model").add_argument
    add("--model", default="unet_resnet18", choices=MODELS, help="name of the model")
    add("--width-mult", type=float, default=1.0, help="multiplies the channels of the model")
    add("--depth-mult", type=float, default=1.0, help="multiplies the blocks of its stages, rounded up")
    add("--output-stride", type=int, default=16, choices=(4, 8, 16, 32), help="of DeepLabV3: image over last features")
    add("--atrous-rates", type=int, nargs="*", default=[12, 24, 36], help="of DeepLabV3: dilations of the pyramid")
    add("--dropout", type=float, default=0.5, help="of DeepLabV3: probability of zeroing an output of the pyramid")
    add("--weights", metavar="PATH", help="model.pth to test")
    add = parser.add_argument_group("data").add_argument
    add("--image-size", type=int, default=64, help="side of the square scenes")
    add("--scenes", type=int, default=512, help="training scenes in an epoch, new ones in each")
    add("--test-scenes", type=int, default=200, help="test scenes, the same in every run")
    add("--batch-size", "-b", type=int, default=32, help="scenes in a batch")
    add = parser.add_argument_group("optimization").add_argument
    add("--epochs", type=int, default=20, help="epochs")
    add("--opt", choices=OPTIMIZERS, default="adamw", help="optimizer")
    add("--lr", type=float, default=0.003, help="highest learning rate, which rises and falls by batch")
    add("--weight-decay", type=float, default=0.01, help="weight decay of all parameters")
    add("--seed", type=int, default=0, help="seed of weights and training scenes")
    add = parser.add_argument_group("results").add_argument
    add("--output-dir", help="directory of model.pth, train.log and predictions.png; by default, outputs/MODEL")
    add("--test-only", action="store_true", help="test --weights without training")
    return parser


def main(args: Namespace) -> dict[str, Any]:
    """Trains or tests a model; returns the history of a training, and the results on the test scenes."""
    check_numbers(args)
    if args.test_only:
        if args.weights is None:
            raise ValueError("test_only needs the weights to test: --weights PATH")
        model, options = load(args.weights)
        result = evaluate(model, test_scenes(args.test_scenes, options["image_size"]), len(CLASSES))
        print(f"{options['model']}: {describe(result)}")
        return {"history": [], "result": result}
    if args.weights is not None:
        raise ValueError("weights can only be tested: --test-only")
    folder = check_output_dir(args.output_dir or f"outputs/{args.model}")
    seed_everything(args.seed)
    model = build(vars(args))
    test = test_scenes(args.test_scenes, args.image_size)
    history = train(model, test, args, folder / "train.log")
    result = evaluate(model, test, len(CLASSES))
    save(model, args, folder / "model.pth")
    draw_predictions(model, test, folder / "predictions.png", f"{args.model}, {describe(result)}")
    print(f"{args.model}: {describe(result)}; wrote {folder}")
    return {"history": history, "result": result}


def train(model: nn.Module, test: Scenes, args: Namespace, log: Path) -> list[dict[str, float]]:
    """Trains the model in place; returns and logs the figures of each epoch."""
    steps = -(-args.scenes // args.batch_size)
    optimizer = OPTIMIZERS[args.opt](model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    cycles = args.opt == "adamw"  # SGD learns less in the end if its momentum rises
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, args.epochs * steps, pct_start=0.2, cycle_momentum=cycles
    )
    history, start = [], time.process_time()
    with log.open("w", encoding="utf-8") as file, deterministic_algorithms():
        print(f"{vars(args)}", file=file)
        for epoch in range(1, args.epochs + 1):
            scenes = training_scenes(args.scenes, args.image_size, args.seed, epoch)
            model.train()
            losses = []
            batches = zip(scenes.images.split(args.batch_size), scenes.masks.split(args.batch_size), strict=True)
            for images, masks in batches:
                error = nn.functional.cross_entropy(model(images), masks)
                optimizer.zero_grad()
                error.backward()
                optimizer.step()
                schedule.step()
                losses.append(error.item())
            result = evaluate(model, test, len(CLASSES))
            loss, seconds = sum(losses) / len(losses), time.process_time() - start
            history.append({"epoch": epoch, "loss": loss, "mean_iou": result.mean_iou, "seconds": seconds})
            line = f"epoch {epoch}: loss {loss:.3f}, {describe(result)}, {seconds:.0f} s of processor time"
            print(line)
            print(line, file=file, flush=True)
    return history


def describe(result: Result) -> str:
    return f"mean IoU {result.mean_iou:.3f}, pixel accuracy {result.pixel_accuracy:.2%}"


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
