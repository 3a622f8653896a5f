"""Models out of files, with torch alone.

Run as a script, it tests such a file in a process in which ``torchvision_layers`` and torchao cannot be imported. The
file is TorchScript or an exported graph, of train_quantization.py, demo.py or deployment.py:

python references/classification/artefact.py outputs/resnet18/int8.pt
"""

import importlib
import json
import sys
import warnings
import zipfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

if __name__ == "__main__":
    sys.modules["torchvision_layers"] = sys.modules["torchao"] = None  # from here on, importing them raises

import torch
from checkpoints import save_atomically
from data import load_datasets
from evaluation import predict
from loading import ON_BAD_IMAGE, ImageLoader, left_out
from torch import Tensor, nn
from utils import HelpFormatter, check_output_dir, run_as_script


class ExportedModel(nn.Module):
    """An exported graph in evaluation mode, the only one it has."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.training = False

    def train(self, mode: bool = True) -> "ExportedModel":
        if mode:
            raise RuntimeError("an exported graph cannot be trained")
        return self  # the graph itself refuses even eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.graph(images)


def load_artefact(path: str | Path) -> tuple[nn.Module, dict[str, object]]:
    """The model in a file that ``deploy.export`` wrote, TorchScript or an exported graph, and what it says of itself.

    For TorchScript in int8 it sets torch's quantized engine to the one the model was made for, since int8 weights are
    packed on loading. For an exported graph in int8 it imports ``torch.ao.quantization.fx._decomposed``, which
    registers the operators that quantize and dequantize: with that import torch loads the graph by itself, without it
    not.

    Raises:
        FileNotFoundError: if there is no file.
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
        quantization = metadata["quantization"] or {}  # of a float model there is none
        about = {**metadata["about"], **quantization, "classes": metadata["classes"]}
        if metadata["format"] == "pt2":
            if quantization:
                importlib.import_module("torch.ao.quantization.fx._decomposed")
            return ExportedModel(torch.export.load(path).module()), about
        if quantization:
            torch.backends.quantized.engine = quantization["backend"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit")  # deprecated
            return torch.jit.load(path), about
    except (zipfile.BadZipFile, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an artefact of these scripts, or a damaged one: {error}") from error


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("path", help="a .pt or .pt2 file of these scripts")
    parser.add_argument("--data-path", metavar="DIR", help="for a model of an imagefolder: the folder")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch")
    parser.add_argument("--on-bad-image", choices=ON_BAD_IMAGE, default="stop", help="what an unreadable image does")
    parser.add_argument("--outputs", metavar="PATH", help="where to write what the model gives for the test images")
    return parser


def main(args: Namespace) -> float:
    """Tests the artefact on the test set of its dataset; returns its accuracy."""
    if args.outputs is not None:
        check_output_dir(Path(args.outputs).parent)
    model, about = load_artefact(args.path)
    _, test_set, classes = load_datasets(about["dataset"], args.data_path, about["image_size"])
    if classes != about["classes"]:
        raise ValueError(f"{args.path} was made for classes {about['classes']}, the data has {classes}")
    loader = ImageLoader(test_set, args.batch_size, on_bad_image=args.on_bad_image)
    result = predict(model, loader)
    name = about["model_name"]
    print(f"{name} without torchvision_layers: test accuracy {result.accuracy:.2%}{left_out(loader)}")
    if args.outputs is not None:
        save_atomically({"accuracy": result.accuracy, "outputs": result.outputs}, args.outputs)
    return result.accuracy


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
