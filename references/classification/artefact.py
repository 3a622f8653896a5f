"""Int8 models as files that load without ``torchvision_layers``; the one place that uses ``torch.jit``.

Run as a script, it tests such a file in a process in which ``torchvision_layers`` cannot be imported:

python references/classification/artefact.py outputs/resnet18/int8.pt
"""

import json
import sys
import warnings
import zipfile
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path

if __name__ == "__main__":
    sys.modules["torchvision_layers"] = None  # from here on, importing it raises

import torch
from data import ON_BAD_IMAGE, ImageLoader, left_out, load_datasets
from torch import nn
from utils import atomic_path, check_output_dir, evaluate, run_as_script, save_atomically


def save_artefact(model: nn.Module, path: str | Path, about: dict[str, object]) -> None:
    """Writes ``model`` as TorchScript at ``path``, with ``about`` inside; whole, or not at all."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        torch.jit.save(torch.jit.script(model), temporary, _extra_files={"about.json": json.dumps(about)})


def load_artefact(path: str | Path) -> tuple[nn.Module, dict[str, object]]:
    """The model in a file of :func:`save_artefact`, and what it says of itself.

    Sets torch's quantized engine to the one the model was made for, since int8 weights are packed on loading.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is damaged or of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/extra/about.json")]
            about = json.loads(archive.read(name))
        torch.backends.quantized.engine = about["backend"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
            return torch.jit.load(path), about
    except (zipfile.BadZipFile, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not an artefact of these scripts, or a damaged one: {error}") from error


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("path", help="a file written by train_quantization.py")
    parser.add_argument("--data-path", metavar="DIR", help="for a model of an imagefolder: the folder")
    parser.add_argument("--batch-size", type=int, default=64)
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
    result = evaluate(model, loader)
    name = about["model_name"]
    print(f"{name} without torchvision_layers: test accuracy {result.accuracy:.2%}{left_out(loader)}")
    if args.outputs is not None:
        save_atomically({"accuracy": result.accuracy, "outputs": result.outputs}, args.outputs)
    return result.accuracy


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
