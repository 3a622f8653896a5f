"""An exported model in a browser, on the digits of scikit-learn.

    python docs/browser_example.py --output-dir outputs/browser

trains a small network, exports it in float and in int8, installs onnxruntime-web with npm, and opens the page
docs/browser/digits.html with headless Chromium. It prints how many labels agree with those in Python. To look at the
page yourself, run ``python -m http.server --directory outputs/browser``.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from chromium import npm_install, post_of_page
from sklearn.datasets import load_digits
from torch import nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn

__all__ = ["classify_in_browser", "install_runtime", "write_page"]

PAGE = Path(__file__).parent / "browser" / "digits.html"
_RUNTIME = "onnxruntime-web@1.30.0"
SIZE, MEAN, STD = 8, 0.3, 0.4
_TESTED = 297


def train() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network, and the normalized images that it was trained and not trained on."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1).div(16).sub(MEAN).div(STD)
    targets = torch.from_numpy(digits.target)
    trained = images[:-_TESTED], targets[:-_TESTED]
    torch.manual_seed(0)
    model = nn.Sequential(
        tnn.ConvNormAct(1, 16),
        tnn.InvertedResidual(16, 24, stride=2, expand_ratio=3, se_layer=tnn.SqueezeExcitation),
        tnn.BasicBlock(24, 24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(6):
        for batch in torch.randperm(len(trained[0])).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(trained[0][batch]), trained[1][batch]).backward()
            optimizer.step()
    return model.eval(), trained[0], images[-_TESTED:]


def write_page(folder: Path) -> dict[str, list[str]]:
    """Writes the page, its models and its images to a folder, and returns the labels of each model in Python."""
    model, calibration, tests = train()
    int8 = quantized.quantize(model, list(calibration.split(100)), engine="pt2e", backend="onnxruntime")
    options: dict[str, Any] = {"classes": [str(i) for i in range(10)], "mean": [MEAN], "std": [STD]}
    deploy.export(model, tests[:2], folder / "digits.onnx", format="onnx", **options)
    deploy.export(int8, tests[:2], folder / "digits_int8.onnx", format="onnx-qdq", **options)
    loaded = {name: deploy.load(folder / name) for name in ("digits.onnx", "digits_int8.onnx")}
    metadata = loaded["digits.onnx"].metadata
    content = {
        "models": list(loaded),
        "size": SIZE,
        "mean": metadata["mean"][0],
        "std": metadata["std"][0],
        "classes": metadata["classes"],
        "images": tests.mul(STD).add(MEAN).flatten(1).tolist(),
    }
    (folder / "digits.json").write_text(json.dumps(content))
    shutil.copy(PAGE, folder / "index.html")
    return {
        name: [metadata["classes"][i] for i in program(tests).argmax(1).tolist()] for name, program in loaded.items()
    }


def install_runtime(folder: Path) -> None:
    """Installs onnxruntime-web below a folder. Errors: ``FileNotFoundError`` without npm."""
    npm_install(folder, _RUNTIME)


def classify_in_browser(folder: Path) -> dict[str, list[str]]:
    """The labels that each model gives on the page of a folder, in headless Chromium.

    Errors: ``FileNotFoundError`` without Chromium; ``RuntimeError`` for an error on the page, or if it does not end.
    """
    return dict(post_of_page(folder)["labels"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/browser"))
    folder = parser.parse_args(argv).output_dir
    folder.mkdir(parents=True, exist_ok=True)
    expected = write_page(folder)
    install_runtime(folder)
    for name, labels in classify_in_browser(folder).items():
        same = sum(map(str.__eq__, labels, expected[name]))
        print(f"{name}: {same} of {len(labels)} labels are those of Python")


if __name__ == "__main__":
    main()
