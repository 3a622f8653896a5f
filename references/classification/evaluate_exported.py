"""Tests an exported model with torch alone: torchvision_layers and torchao cannot be imported in this process.

python references/classification/evaluate_exported.py outputs/resnet18/int8.pt

The file is TorchScript or an exported graph that train_quantization.py, demo.py or deployment.py has written.
"""

import importlib
import json
import sys
import warnings
import zipfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

if __name__ == "__main__":
    sys.modules["torchvision_layers"] = sys.modules["torchao"] = None  # importing them raises an error from here on

import torch
from common.cli import HelpFormatter, run_as_script
from common.data.datasets import load_datasets
from common.data.loading import ON_BAD_IMAGE, ImageLoader, skipped_images
from common.runs.files import check_output_dir, save_atomically
from common.training.evaluation import predict
from torch import Tensor, nn


class ExportedGraph(nn.Module):
    """An exported graph, which is always in evaluation mode."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.training = False

    def train(self, mode: bool = True) -> "ExportedGraph":
        if mode:
            raise RuntimeError("an exported graph cannot be trained")
        return self  # graphs of torch.export raise an error even for eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.graph(images)


def load_exported(path: str | Path) -> tuple[nn.Module, dict[str, object]]:
    """The model in a TorchScript or ``pt2`` file of ``deploy.export``, and its metadata.

    For int8 TorchScript it sets torch's quantized engine to the model's backend, since loading packs the int8 weights.
    For an int8 graph it imports ``torch.ao.quantization.fx._decomposed``, which registers the operators that quantize
    and dequantize; ``torch.export.load`` fails without them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/extra/metadata.json")]
            if len(names) != 1:
                raise ValueError("neither TorchScript nor an exported graph with metadata")
            metadata = json.loads(archive.read(names[0]))
        quantization = metadata["quantization"] or {}  # null for a float model
        about = {**metadata["about"], **quantization, "classes": metadata["classes"]}
        if metadata["format"] == "pt2":
            if quantization:
                importlib.import_module("torch.ao.quantization.fx._decomposed")
            return ExportedGraph(torch.export.load(path).module()), about
        if quantization:
            torch.backends.quantized.engine = quantization["backend"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit")  # deprecated
            return torch.jit.load(path), about
    except (zipfile.BadZipFile, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not an exported model of these scripts: {error}") from error


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("path", help="a .pt or .pt2 file of these scripts")
    parser.add_argument("--data-path", metavar="DIR", help="the folder, if the dataset of the model has one")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch")
    parser.add_argument(
        "--on-bad-image", choices=ON_BAD_IMAGE, default="stop", help="stop at an unreadable image, or skip it"
    )
    parser.add_argument("--outputs", metavar="PATH", help="file for the outputs of the model on the test images")
    return parser


def main(args: Namespace) -> float:
    """Tests the model on the test set of its dataset; returns the accuracy."""
    if args.outputs is not None:
        check_output_dir(Path(args.outputs).parent)
    model, about = load_exported(args.path)
    _, test_set, classes = load_datasets(
        about["dataset"], args.data_path, about["image_size"], normalization=about["normalization"]
    )
    if classes != about["classes"]:
        raise ValueError(f"{args.path} was made for classes {about['classes']}, the data has {classes}")
    loader = ImageLoader(test_set, args.batch_size, on_bad_image=args.on_bad_image)
    result = predict(model, loader)
    name = about["model_name"]
    print(f"{name} without torchvision_layers: test accuracy {result.accuracy:.2%}{skipped_images(loader)}")
    if args.outputs is not None:
        save_atomically({"accuracy": result.accuracy, "outputs": result.outputs}, args.outputs)
    return result.accuracy


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
