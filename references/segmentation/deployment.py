"""Takes a trained segmentation model to int8, and exports it to files that run without this package.

python references/segmentation/deployment.py --weights outputs/unet_resnet18/model.pth --files onnx "torchscript int8"
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from checkpoints import load
from evaluation import evaluate
from pictures import draw_predictions
from scenes import CLASSES, test_scenes, training_scenes
from shared import (
    CAPTION,
    FILES,
    HelpFormatter,
    ModelCard,
    check_output_dir,
    columns,
    export_files,
    failed_exports,
    files_table,
    run_as_script,
)

from torchvision_layers import deploy, quantized

ENGINES = {"eager": "auto", "pt2e": "x86"}
BATCH = 32


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--weights", metavar="PATH", required=True, help="model.pth of train.py")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=["eager"], help="engines to compare in int8")
    parser.add_argument("--files", nargs="*", choices=FILES, default=[], metavar="FILE", help=", ".join(FILES))
    parser.add_argument("--calibration-scenes", type=int, default=256, help="training scenes to calibrate on")
    parser.add_argument("--test-scenes", type=int, default=200, help="test scenes")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the latency measurement")
    parser.add_argument("--output-dir", help="directory of files and pictures; by default, that of the weights")
    return parser


def main(args: Namespace) -> dict[str, Any]:
    """Evaluates int8 models and writes files; returns the mean IoU by engine, ``"float"`` included, and the rows."""
    model, options = load(args.weights)
    folder = check_output_dir(args.output_dir or Path(args.weights).parent)
    size = options["image_size"]
    calibration = training_scenes(args.calibration_scenes, size, seed=0, epoch=0)
    test = test_scenes(args.test_scenes, size)
    folded = deploy.fold(model, test.images[:2])
    results = {"float": evaluate(model, test, len(CLASSES))}
    for engine in args.engines:
        int8 = quantized.quantize(folded, calibration.images.split(BATCH), engine=engine, backend=ENGINES[engine])
        results[f"int8, {engine}"] = evaluate(int8, test, len(CLASSES))
        draw_predictions(int8, test, folder / f"predictions_int8_{engine}.png", f"{options['model']}, int8, {engine}")
    table = [("model", "mean IoU", "pixel accuracy")]
    table += [(name, f"{r.mean_iou:.3f}", f"{r.pixel_accuracy:.2%}") for name, r in results.items()]
    print(columns(table))
    batches = list(zip(calibration.images.split(BATCH), calibration.masks.split(BATCH), strict=True))
    card = ModelCard(options["model"], "digits", size, classes=[])  # names of classes are for the last dimension
    rows = export_files(folded, batches, card, folder, args.files, rounds=args.rounds, seed=0) if args.files else []
    if rows:
        print(CAPTION, files_table(rows), *failed_exports(rows), sep="\n")
    return {"mean_iou": {name: result.mean_iou for name, result in results.items()}, "rows": rows}


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
