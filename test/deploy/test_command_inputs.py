"""The command with photographs, models of timm and of torchvision, and checkpoints of safetensors."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import transforms

from torchvision_layers import deploy, quantized
from torchvision_layers.deploy._cli import main
from torchvision_layers.deploy._named_model import usual_preprocessing
from torchvision_layers.deploy._photographs import PRESETS, Preprocessing, load_photographs

MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 5)

    def forward(self, input):
        return self.head(self.stem(input).mean((2, 3)))
"""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Images of several sizes, formats and modes, in folders, beside a file of another kind."""
    folder, generator = tmp_path / "photos", np.random.default_rng(0)
    (folder / "cats").mkdir(parents=True)
    for i, (name, size) in enumerate({"a.png": (40, 60), "cats/b.PNG": (50, 30), "cats/c.bmp": (32, 32)}.items()):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        (image.convert("L") if i == 1 else image).save(folder / name)
    (folder / "labels.txt").write_text("cat\n")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> tuple[str, str]:
    """The arguments for a small model and its weights."""
    source = tmp_path / "net.py"
    source.write_text(MODEL)
    state: dict[str, Any] = {}
    exec(MODEL, state)
    torch.manual_seed(0)
    torch.save(state["Net"]().state_dict(), tmp_path / "net.pth")
    return f"{source}:Net", str(tmp_path / "net.pth")


def error_of(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([str(arg) for arg in argv]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == error.count("\n") == 1, error
    return error


def test_photographs_are_preprocessed_as_by_torchvision(photographs: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    inputs = load_photographs(photographs, Preprocessing((28, 28), mean, std), 3, 100)
    steps = transforms.Compose(
        [transforms.Resize(32), transforms.CenterCrop(28), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    for input, name in zip(inputs, ("a.png", "cats/b.PNG", "cats/c.bmp"), strict=True):
        expected = steps(Image.open(photographs / name).convert("RGB"))
        torch.testing.assert_close(input, expected)


@pytest.mark.parametrize("size", [(24, 24), (16, 40), (48, 20), (64, 96)])
def test_photographs_cover_the_size(size: tuple[int, int], photographs: Path) -> None:
    inputs = load_photographs(photographs, Preprocessing(size, (0.0,), (1.0,), crop=1.0), 1, 100)
    assert inputs.shape == (3, 1, *size)
    assert float(inputs.amin(1).amax()) > 0  # no black borders, which center_crop adds to images that are too small
    assert all(bool((row > 0).any()) for image in inputs for row in (*image[0], *image[0].T))


def test_photographs_are_spread_over_the_folder(tmp_path: Path) -> None:
    for i in range(20):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(tmp_path / f"{i:02}.png")
    inputs = load_photographs(tmp_path, Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3), 3, 5)
    torch.testing.assert_close(inputs[:, 0, 0, 0] * 255, torch.tensor([0.0, 40, 80, 120, 160]))


def test_photographs_of_16_bits_keep_their_brightness(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    for channels in (1, 3):
        inputs = load_photographs(
            tmp_path, Preprocessing((64, 64), (0.0,) * channels, (1.0,) * channels, crop=1.0), channels, 1
        )
        expected = torch.from_numpy(values / 65535).float().expand(1, channels, 64, 64)
        torch.testing.assert_close(inputs, expected, atol=1 / 128, rtol=0)


def test_photographs_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="a.tif is not an image, .* mode 'F', whose range is unknown"):
        load_photographs(tmp_path, Preprocessing((8, 8), (0.0,), (1.0,)), 1, 1)


def test_huge_photographs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="a.png is not an image, or is damaged: Image size"):
        load_photographs(tmp_path, Preprocessing((8, 8), (0.0,), (1.0,)), 1, 1)


def test_int8_from_photographs(
    photographs: Path, model: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "net.onnx"
    argv = [*model, "--output", output, "--int8", "--calibration", photographs, "--image-size", 24, "--report"]
    assert main([str(arg) for arg in argv]) == 0
    out = capsys.readouterr().out
    assert "calibration: 3 photographs, cropped to 24×24 pixels, mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in out
    assert "stem.0" in out
    loaded = deploy.load(output)
    assert loaded.metadata["mean"] == [0.485, 0.456, 0.406]
    assert loaded(torch.randn(2, 3, 24, 24)).shape == (2, 5)


def test_preset_and_its_parts(
    photographs: Path, model: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Tensor] = []

    def quantize(model: nn.Module, found: list[Tensor], **options: object) -> nn.Module:
        batches[:] = found
        return model

    monkeypatch.setattr(quantized, "quantize", quantize)
    monkeypatch.setattr(deploy, "export", lambda *args, **options: deploy.Exported(tmp_path, "pt", 1, 0.0, ()))
    argv = [*model, "--output", str(tmp_path / "a.pt"), "--int8", "--calibration", str(photographs)]
    assert main([*argv, "--preset", "inception", "--std", "0.25", "0.5", "1.0"]) == 0
    (found,) = batches
    expected = load_photographs(photographs, PRESETS["inception"], 3, 100)
    torch.testing.assert_close(found * torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1), expected * 0.5)
    assert found.shape == (3, 3, 299, 299)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b3", "inception_v3", "vit_b_16", "swin_v2_t"])
def test_preprocessing_of_torchvision(name: str, photographs: Path) -> None:
    """Its own transforms interpolate bicubically for some models; the pixels then differ a little."""
    found = usual_preprocessing(f"torchvision.models:{name}", nn.Identity())
    steps = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    inputs = load_photographs(photographs, found, 3, 1)
    expected = steps(Image.open(photographs / "a.png").convert("RGB"))
    assert inputs[0].shape == expected.shape
    assert float((inputs[0] - expected).abs().mean()) < 0.2


def test_model_of_timm(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    state = timm.create_model("lcnet_035", num_classes=6).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    argv = ["timm:lcnet_035", tmp_path / "model.safetensors", "--num-classes", 6, "--image-size", 32]
    assert main([str(arg) for arg in [*argv, "--output", tmp_path / "model.pt"]]) == 0
    timm_model = timm.create_model("lcnet_035", num_classes=6).eval()
    timm_model.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(deploy.load(tmp_path / "model.pt")(x), timm_model(x), rtol=1e-4, atol=1e-5)
    preprocessing = usual_preprocessing("timm:lcnet_035", timm_model)
    assert (preprocessing.size, preprocessing.crop) == ((224, 224), 0.875)
    argv[0] = "timm:lcnet_35"
    assert "timm has no model 'lcnet_35'; similar ones: lcnet_035" in error_of(capsys, *argv, "--output", "a.pt")


def test_missing_packages(
    model: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("--output", tmp_path / "a.pt")
    for name in ("timm", "timm.data", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "timm:NAME needs timm" in error_of(capsys, "timm:resnet18", model[1], *output)
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert "pip install safetensors" in error_of(capsys, model[0], tmp_path / "a.safetensors", *output)


def test_files_that_cannot_be_read(
    photographs: Path, model: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("--output", tmp_path / "a.pt")
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    assert "a.safetensors is not a file of safetensors" in error_of(
        capsys, model[0], tmp_path / "a.safetensors", *output
    )
    assert "none.safetensors" in error_of(capsys, model[0], tmp_path / "none.safetensors", *output)
    int8 = (*model, *output, "--int8", "--calibration")
    (tmp_path / "empty").mkdir()
    assert "must be a folder with images (.bmp," in error_of(capsys, *int8, tmp_path / "empty")
    assert "one number for each of 3 channels, got 1 and 3" in error_of(capsys, *int8, photographs, "--mean", 0.5)
    assert "1 or 3 channels, got --channels 4" in error_of(capsys, *int8, photographs, "--channels", 4)
    (photographs / "d.png").write_bytes((photographs / "a.png").read_bytes()[:200])
    assert "d.png is not an image, or is damaged" in error_of(capsys, *int8, photographs)
    assert "--report is for int8 models" in error_of(capsys, *model, *output, "--report")
