"""Exported files of a trained model and their table, for models that export quickly."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import deployment
import evaluate_exported
import models
import onnxruntime
import pytest
import torch
import train
import train_quantization
from common.data.loading import load_data
from common.exporting import FILES, file_name, first_images
from common.settings import DataSettings
from common.tables.files import FileRow, files_table
from common.tables.text import columns
from expecttest import assert_expected_inline
from models.resnet import ResNet
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn

from ..interpreter import Interpreter

SOME_FILES = ("torchscript", "torchscript int8", "pt2", "onnx")


def small(num_classes: int, width_mult: float = 1.0, depth_mult: float = 1.0) -> nn.Module:
    body = [tnn.ConvNormAct(3, 8, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, num_classes))


def standardized(num_classes: int, width_mult: float = 1.0, depth_mult: float = 1.0) -> nn.Module:
    norm = partial(nn.GroupNorm, 4)
    return ResNet(tnn.BasicBlock, (1, 1, 1, 1), num_classes, 0.125, norm_layer=norm, conv_layer=tnn.WSConv2d)


class Branching(nn.Module):
    """Branches on values, which TorchScript supports and an exported graph does not."""

    def __init__(self, num_classes: int, width_mult: float = 1.0, depth_mult: float = 1.0) -> None:
        super().__init__()
        self.layers = small(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.mean() > 1e6):
            return self.layers(x) + 1
        return self.layers(x)


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, build in (("small", small), ("standardized", standardized), ("branching", Branching)):
        monkeypatch.setitem(models.MODELS, name, build)


def options_for(photos: Path, model: str = "small") -> list[str]:
    data = ["--dataset", "imagefolder", "--data-path", str(photos), "--image-size", "32", "--batch-size", "4"]
    return ["--model", model, *data]


def train_one(photos: Path, folder: Path, model: str = "small") -> Path:
    """Trains for one epoch of four batches and returns the path of the weights."""
    argv = [*options_for(photos, model), "--epochs", "1", "--output-dir", str(folder)]
    train.main(train.get_parser().parse_args(argv))
    return folder / "model.pth"


def write(photos: Path, weights: Path, folder: Path, *extra: str, model: str = "small") -> list[FileRow]:
    argv = [*options_for(photos, model), "--weights", str(weights), "--output-dir", str(folder), "--rounds", "2"]
    return deployment.main(deployment.get_parser().parse_args([*argv, *extra]))


def trained(weights: Path, build: Callable[[int], nn.Module] = small) -> nn.Module:
    model = build(2).eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    return model


def images_in(photos: Path) -> Tensor:
    """The test images."""
    _, loader, _ = load_data(DataSettings.from_args(train.get_parser().parse_args(options_for(photos))))
    return torch.cat([images for images, _ in loader])


def relative_error(output: Tensor, expected: Tensor) -> Tensor:
    """The squared error relative to the variance between images."""
    return (output - expected).square().mean() / (expected - expected.mean(0)).square().mean()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files_and_their_rows(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows are in the order of the arguments, and the files compute what the model computes."""
    weights, files = train_one(photos, tmp_path / "trained"), tmp_path / "files"
    capsys.readouterr()
    rows = write(photos, weights, files, "--files", *SOME_FILES)
    assert [(row.model, row.file, row.problem) for row in rows] == [("small", file, "") for file in SOME_FILES]
    assert names_in(files) == {file_name(file) for file in SOME_FILES}
    assert [row.size for row in rows] == [(files / file_name(file)).stat().st_size for file in SOME_FILES]
    assert all(0 <= row.difference < 1e-4 and 0 < row.latency < 1000 for row in rows)
    assert rows[1].difference == 0
    out = capsys.readouterr().out
    assert files_table(rows) in out
    assert out.rstrip().endswith(f"small: files are in {files}")

    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = trained(weights)(x)
    session = onnxruntime.InferenceSession(str(files / "onnx.onnx"))
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), expected)
    for name in ("torchscript.pt", "pt2.pt2"):
        model, about = evaluate_exported.load_exported(files / name)
        torch.testing.assert_close(model(x), expected)
        assert (about["model_name"], about["classes"]) == ("small", ["blue", "red"])
        assert "engine" not in about

    int8 = deploy.load(files / "torchscript_int8.pt")
    assert (int8(x) - expected).abs().max() < 0.1 * expected.abs().max()
    assert not torch.equal(int8(x), expected)


def test_int8_file_does_not_depend_on_other_files(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is calibrated on images from the same seed."""
    weights = train_one(photos, tmp_path)
    monkeypatch.setitem(FILES, "first", FILES["torchscript int8"])
    write(photos, weights, tmp_path / "both", "--files", "first", "torchscript int8")
    write(photos, weights, tmp_path / "alone", "--files", "torchscript int8")
    assert names_in(tmp_path / "alone") == {"torchscript_int8.pt"}
    both, alone = (deploy.load(tmp_path / folder / "torchscript_int8.pt") for folder in ("both", "alone"))
    x = images_in(photos)
    assert torch.equal(both(x), alone(x))


def test_files_run_without_the_package(photos: Path, tmp_path: Path, interpreter: Interpreter) -> None:
    write(photos, train_one(photos, tmp_path), tmp_path, "--files", "torchscript int8")
    path, outputs = tmp_path / "torchscript_int8.pt", tmp_path / "outputs.pth"
    options = ["--data-path", str(photos), "--outputs", str(outputs)]
    result = interpreter.run(Path(evaluate_exported.__file__), str(path), *options)
    assert result.stdout.startswith("small without torchvision_layers: test accuracy"), result.stderr
    assert torch.equal(torch.load(outputs, weights_only=True)["outputs"], deploy.load(path)(images_in(photos)))


def test_missing_requirements_are_in_the_table(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script succeeds, writes the other files, and does not touch the earlier files of those that fail."""
    import torch._inductor.cpp_builder as compiler
    from torch._inductor.exc import InvalidCxxCompiler

    def no_compiler() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(compiler, "get_cpp_compiler", no_compiler)
    for package in ("executorch", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    weights = train_one(photos, tmp_path)
    (tmp_path / "onnx.onnx").write_bytes(b"earlier")
    rows = write(photos, weights, tmp_path, "--files", "aoti", "onnx", "executorch", "torchscript")
    assert [row.file for row in rows if not row.problem] == ["torchscript"]
    out = capsys.readouterr().out
    for row, reason in zip(rows, ("needs a C++ compiler", "needs onnxscript", "needs executorch"), strict=False):
        assert row.is_missing
        assert reason in row.problem
        assert row.problem in out
    assert (tmp_path / "onnx.onnx").read_bytes() == b"earlier"
    assert names_in(tmp_path) >= {"torchscript.pt"}
    assert not names_in(tmp_path) & {"aoti.pt2", "executorch.pte"}


def test_format_that_cannot_hold_the_model(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script fails after it has written the other files and the table."""
    weights = train_one(photos, tmp_path, "branching")
    (tmp_path / "pt2.pt2").write_bytes(b"earlier")
    with pytest.raises(ValueError, match="^branching was not written as pt2$"):
        write(photos, weights, tmp_path, "--files", "pt2", "torchscript", model="branching")
    header, failed, exported = table_in(capsys.readouterr().out)
    assert header.split() == ["model", "file", "size", "equal", "within", "time"]
    assert failed.startswith("branching  pt2          ")
    assert "cannot be exported" in failed
    assert exported.startswith("branching  torchscript  ")
    assert (tmp_path / "pt2.pt2").read_bytes() == b"earlier"
    deploy.load(tmp_path / "torchscript.pt")


def table_in(text: str) -> list[str]:
    return text.split("\n\n")[-2].splitlines()


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (["--model", "resnet19"], ValueError, "is a checkpoint of small with 2 classes, not of resnet19"),
        (["--weights", "nowhere.pth"], FileNotFoundError, "nowhere.pth"),
        (["--rounds", "0"], ValueError, "rounds must be at least 1; got 0"),
        (["--seed", "-1"], ValueError, "seed must be at least 0; got -1"),
        (["--image-size", "16"], ValueError, "model.pth was made with image_size 32, not 16"),
        (["--data-path", "nowhere"], ValueError, "data_path nowhere does not exist"),
        (["--output-dir", __file__], OSError, "output_dir .*test_deployment.py cannot be written to"),
    ],
)
def test_bad_arguments(photos: Path, tmp_path: Path, extra: list[str], error: type, message: str) -> None:
    """They are reported before anything is written."""
    weights = train_one(photos, tmp_path / "trained")
    with pytest.raises(error, match=message):
        write(photos, weights, tmp_path / "files", "--files", "torchscript", *extra)
    assert not (tmp_path / "files").exists() or names_in(tmp_path / "files") == set()


def test_unknown_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        deployment.get_parser().parse_args(["--weights", "model.pth", "--files", "torchscript", "tflite"])
    assert "argument --files: invalid choice: 'tflite'" in capsys.readouterr().err


def test_help_lists_every_file() -> None:
    text = deployment.get_parser().format_help()
    for file, entry in FILES.items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{file}  "))
        assert line.split("  ")[-1].strip() == entry.runtime
        assert f" {file_name(file)} " in line
    assert "default: None" not in text
    assert "(default: 40)" in text


def test_standardized_weights_are_folded_for_int8(photos: Path, tmp_path: Path) -> None:
    weights = train_one(photos, tmp_path, "standardized")
    rows = write(photos, weights, tmp_path, "--files", "torchscript", "torchscript int8", model="standardized")
    assert [row.problem for row in rows] == ["", ""]
    assert rows[1].size < rows[0].size / 2
    int8 = deploy.load(tmp_path / "torchscript_int8.pt")
    runs_in = {row["path"]: row["runs_in"] for row in int8.metadata["quantization"]["report"]}
    model = trained(weights, standardized)
    compute_ops = [path for path, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(compute_ops) == 13
    assert [runs_in[path] for path in compute_ops] == ["int8"] * len(compute_ops)
    x = images_in(photos)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(deploy.load(tmp_path / "torchscript.pt")(x), expected)
    assert relative_error(int8(x), expected) < 0.02


@pytest.mark.parametrize("extra", [[], ["--qat", "--epochs", "1", "--lr", "1e-6"]])
def test_train_quantization_folds_standardized_weights(photos: Path, tmp_path: Path, extra: list[str]) -> None:
    weights = train_one(photos, tmp_path, "standardized")
    argv = [*options_for(photos, "standardized"), "--weights", str(weights), "--output-dir", str(tmp_path)]
    train_quantization.main(train_quantization.get_parser().parse_args([*argv, *extra]))
    model, _ = evaluate_exported.load_exported(tmp_path / ("int8_qat.pt" if extra else "int8.pt"))
    x = images_in(photos)
    with torch.no_grad():
        assert relative_error(model(x), trained(weights, standardized)(x)) < 0.02


def test_few_images_are_repeated() -> None:
    batches = [(torch.full((2, 3, 4, 4), float(i)), torch.zeros(2)) for i in range(3)]
    assert first_images(batches, 5)[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2]
    assert first_images(batches, 8)[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    with pytest.raises(ValueError, match="none of the training images can be read"):
        first_images([], 5)


def test_unreadable_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = train_one(photos, tmp_path)
    for image in photos.glob("*/*[2-6].png"):
        image.write_bytes(b"not an image")
    write(photos, weights, tmp_path, "--files", "torchscript", "--on-bad-image", "skip")
    assert "unreadable images skipped: " in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(ValueError, match="cannot be read as an image"):
        write(photos, weights, tmp_path, "--files", "torchscript")
    for image in photos.glob("*/*.png"):
        image.write_bytes(b"not an image")
    with pytest.raises(ValueError, match="none of the training images can be read"):
        write(photos, weights, tmp_path, "--files", "torchscript", "--on-bad-image", "skip")


def test_table() -> None:
    rows = [
        FileRow("resnet18", "torchscript", 44_772_165, 2.3e-7, 0.934),
        FileRow("resnet18", "onnx", problem="this format needs onnx:\n  pip install onnx", is_missing=True),
        FileRow("mobilenet_v2", "torchscript int8", 2_700_000, 0.0, 0.5),
    ]
    assert_expected_inline(
        files_table(rows),
        """\
model         file                 size  equal within  time
resnet18      torchscript       44.8 MB       2.3e-07  0.93
resnet18      onnx              this format needs onnx: pip install onnx
mobilenet_v2  torchscript int8   2.7 MB       0.0e+00  0.50""",
    )
    assert columns([("a", "b"), ("1", "22"), ("333",)]) == "a   b\n1  22\n333"
