"""The command: the files and options that it accepts, its errors, and the calls that it makes."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers._utils.importing import factory
from torchvision_layers.deploy._choosing import CHOICES
from torchvision_layers.deploy._cli import main
from torchvision_layers.deploy.formats.format import Format
from torchvision_layers.deploy.formats.table import FORMATS

SOURCE = """
import torch
from torch import nn

from .parts import stem


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.fc = stem(), nn.Linear(4, num_classes)

    def forward(self, input):
        return self.fc(self.stem(input).mean((2, 3)))


def net(num_classes: int = 7) -> nn.Module:
    return Net(num_classes)


def nothing():
    return 3
"""
TWO_INPUTS = """

class TwoInputs(Net):
    def forward(self, input, other):
        return super().forward(input + other)


def two_inputs(num_classes: int = 7) -> nn.Module:
    return TwoInputs(num_classes)
"""
PARTS = """
from torch import nn


def stem():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
"""


@pytest.fixture
def package(tmp_path: Path) -> str:
    """The file of a model, in a package that has the same name as an imported one."""
    folder = tmp_path / "json" / "models"
    folder.mkdir(parents=True)
    (tmp_path / "json" / "__init__.py").touch()
    (folder / "__init__.py").write_text("from . import small\n")
    (folder / "small.py").write_text(SOURCE)
    (folder / "parts.py").write_text(PARTS)
    return str(folder / "small.py")


@pytest.fixture
def checkpoint(tmp_path: Path, package: str) -> Path:
    """A checkpoint like those of the reference scripts."""
    with factory(f"{package}:net") as function:
        state = function(num_classes=3).state_dict()
    about = {"model_name": "net", "num_classes": 3, "classes": ["a", "b", "c"], "settings": {"image_size": 20}}
    torch.save({**about, "model": state, "test_accuracy": 0.5}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of the calls of ``fold``, ``quantize`` and ``export``, which are replaced by stubs."""
    arguments: dict[str, Any] = {}

    def fold(model: nn.Module, batch: Tensor | None = None) -> nn.Module:
        arguments["fold"] = model, batch
        return model

    def quantize(model: nn.Module, batches: list[Tensor], **options: object) -> nn.Module:
        arguments["quantize"] = batches, options
        return model

    def export(model: nn.Module, example: Tensor, path: Path, **options: Any) -> deploy.Exported:
        arguments["export"] = model, example, path, options
        return deploy.Exported(path, options["format"], 2_340_000, 1.5e-7, ((2, 3, 20, 20), (1, 3, 20, 20)))

    monkeypatch.setattr(Format, "require", lambda *_: None)  # the stubs need none
    monkeypatch.setattr(deploy, "fold", fold)
    monkeypatch.setattr(deploy, "export", export)
    monkeypatch.setattr(quantized, "quantize", quantize)
    return arguments


@pytest.mark.parametrize(
    ("options", "format", "is_lowered"),
    [
        (["model.pt2"], "pt2", True),
        (["model.pt2", "--no-lowered"], "pt2", False),
        (["model.pt2", "--format", "pt2"], "pt2", False),
        (["model", "--format", "pt2", "--lowered"], "pt2", True),
        (["model.pt"], "torchscript", False),
    ],
)
def test_lowered(
    options: list[str], format: str, is_lowered: bool, package: str, checkpoint: Path, tmp_path: Path, calls: dict
) -> None:
    output = [str(tmp_path / options[0]), *options[1:]]
    assert main([f"{package}:net", str(checkpoint), "--output", *output]) == 0
    assert (calls["export"][3]["format"], calls["export"][3]["lowered"]) == (format, is_lowered)


@pytest.fixture
def command_error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, checks that it ends with status 2 and one line, and returns that line."""

    def run(*argv: object) -> str:
        assert main([str(arg) for arg in argv]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return run


def test_checkpoint_of_reference_scripts(
    package: str, checkpoint: Path, tmp_path: Path, calls: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.onnx"
    mean = ["--mean", "0.1", "0.2", "0.3", "--std", "1", "2", "3"]
    assert main([f"{package}:net", str(checkpoint), "--output", str(output), *mean]) == 0
    model, example, path, options = calls["export"]
    assert not model.training
    assert torch.equal(model.fc.weight, torch.load(checkpoint, weights_only=True)["model"]["fc.weight"])
    assert example.shape == (2, 3, 20, 20)
    assert path == output
    assert options == {
        "format": "onnx",
        "lowered": False,
        "classes": ["a", "b", "c"],
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 2, 3],
        "about": {"model_name": "net", "settings": {"image_size": 20}, "test_accuracy": 0.5},
    }
    assert calls["fold"] == (model, example)
    assert "quantize" not in calls
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("folded")
    assert printed[-1] == (
        f"{output}: onnx, 2.3 MB, differs from the model by at most 1.5e-07 of the largest output, "
        "compared on 2×3×20×20, 1×3×20×20"
    )


def test_model_arguments_of_checkpoint(checkpoint: Path, tmp_path: Path, calls: dict[str, Any]) -> None:
    """The training script saves its multipliers of channels and depth."""
    (tmp_path / "wide.py").write_text(
        "from torch import nn\n\n\ndef wide(num_classes, width_mult=1.0):\n"
        "    return nn.Sequential(nn.Conv2d(3, int(8 * width_mult), 3), nn.Flatten(), nn.LazyLinear(num_classes))\n"
    )
    with factory(f"{tmp_path / 'wide.py'}:wide") as function:
        model = function(3, 0.25)
    model(torch.zeros(1, 3, 20, 20))
    fields = torch.load(checkpoint, weights_only=True)
    torch.save({**fields, "model": model.state_dict(), "model_arguments": {"width_mult": 0.25}}, checkpoint)
    argv = [f"{tmp_path / 'wide.py'}:wide", str(checkpoint), "--output", str(tmp_path / "a.pt"), "--no-fold"]
    assert main(argv) == 0
    assert calls["export"][0][0].out_channels == 2


def test_plain_state_dict(package: str, checkpoint: Path, tmp_path: Path, calls: dict[str, Any]) -> None:
    torch.save(torch.load(checkpoint, weights_only=True)["model"], tmp_path / "state.pth")
    argv = [f"{package}:net", str(tmp_path / "state.pth"), "--output", str(tmp_path / "a.pt"), "--no-fold"]
    assert main([*argv, "--num-classes", "3", "--image-size", "12", "14"]) == 0
    _, example, _, options = calls["export"]
    assert example.shape == (2, 3, 12, 14)
    assert options["format"] == "torchscript"
    assert options["classes"] == ()
    assert options["about"] == {}
    assert "fold" not in calls
    assert main([*argv, "--num-classes", "3"]) == 0
    assert calls["export"][1].shape == (2, 3, 224, 224)


@pytest.mark.parametrize(
    ("options", "format", "engine", "backend"),
    [
        (("a.pt", "--int8"), "torchscript", "eager", "x86"),
        (("a.pt", "--int8", "--backend", "qnnpack"), "torchscript", "eager", "qnnpack"),
        (("a.pt2", "--int8"), "pt2", "pt2e", "x86"),
        (("a.pt2", "--int8", "--format", "aoti"), "aoti", "pt2e", "x86"),
        (("a.onnx", "--int8"), "onnx-qdq", "pt2e", "onnxruntime"),
        (("a.onnx", "--format", "onnx-qdq"), "onnx-qdq", "pt2e", "onnxruntime"),
        (("a.pte", "--int8"), "executorch", "pt2e", "xnnpack"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_int8(
    options: tuple[str, ...],
    format: str,
    engine: str,
    backend: str,
    suffix: str,
    package: str,
    checkpoint: Path,
    tmp_path: Path,
    calls: dict[str, Any],
) -> None:
    images, file = torch.randn(40, 3, 9, 11), tmp_path / f"images.{suffix}"
    if suffix == "npy":
        np.save(file, images.numpy())
    else:
        torch.save(images, file)
    output, *rest = options
    argv = [f"{package}:net", checkpoint, "--output", tmp_path / output, *rest, "--calibration", file]
    assert main([str(arg) for arg in argv]) == 0
    batches, kwargs = calls["quantize"]
    assert torch.equal(torch.cat(batches), images)
    assert max(len(batch) for batch in batches) <= 32
    assert kwargs == {"engine": engine, "backend": backend}
    assert calls["export"][3]["format"] == format
    assert torch.equal(calls["export"][1], images[:2])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--vnni", {"vnni": True}),
        ("--ranges auto --rounding gptq", {"ranges": "auto", "rounding": "gptq"}),
        ("--ranges 99.9", {"ranges": quantized.Percentile(99.9)}),
        ("--ranges percentile", {"ranges": quantized.Percentile()}),
        ("--exclude fc stem.*", {"exclude": ["fc", "stem.*"]}),
        ("--tolerance 30 --allow-float", {"tolerance": 30.0, "allow_float": True}),
        (
            "--no-per-channel --no-dynamic-sizes --no-check",
            {"per_channel": False, "dynamic_sizes": False, "check": False},
        ),
        ("--per-channel --dynamic-sizes --check", {"per_channel": True, "dynamic_sizes": True, "check": True}),
    ],
)
def test_options_of_quantize(
    options: str, expected: dict[str, Any], package: str, checkpoint: Path, tmp_path: Path, calls: dict[str, Any]
) -> None:
    torch.save(torch.randn(4, 3, 9, 11), tmp_path / "images.pt")
    argv = [f"{package}:net", checkpoint, "--output", tmp_path / "a.onnx", "--int8", "--calibration"]
    assert main([*map(str, argv), str(tmp_path / "images.pt"), *options.split()]) == 0
    assert calls["quantize"][1] == {"engine": "pt2e", "backend": "onnxruntime", **expected}


def test_the_command_has_all_options_of_quantize(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    #: The first two are arguments of their own, the format has an engine, and a function cannot be an option.
    for name in inspect.signature(quantized.quantize).parameters.keys() - {
        "model",
        "batches",
        "engine",
        "drop",
        "progress",
    }:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("a.onnx", "--backend onednn", "backend must be one of auto, x86, litert, onnxruntime, tensorrt"),
        ("a.pte", "--backend x86", "--backend x86 does not go with executorch: pass --format pt2 or aoti or onnx-qdq"),
        ("a.pt2", "--format aoti --backend tensorrt", "tensorrt does not go with aoti: pass --format pt2 or onnx-qdq"),
        ("a.pt2", "--backend tensorrt --lowered", "--backend tensorrt does not go with pt2"),
        ("a.pt2", "--vnni", "--vnni is for the backend onnxruntime, got x86"),
        ("a.onnx", "--vnni --backend tensorrt", "--vnni is for the backend onnxruntime, got tensorrt"),
    ],
)
def test_backends_that_do_not_go_with_the_format(
    output: str, options: str, message: str, package: str, tmp_path: Path, command_error: Callable[..., str]
) -> None:
    """The error comes before anything is read."""
    argv = [f"{package}:net", tmp_path / "none.pth", "--output", tmp_path / output, "--int8", "--calibration", "none/"]
    assert message in command_error(*argv, *options.split())


def test_layers_in_float_are_allowed_by_an_option(
    package: str,
    checkpoint: Path,
    tmp_path: Path,
    calls: dict[str, Any],
    command_error: Callable[..., str],
    monkeypatch,
) -> None:
    def quantize(*args: object, **options: object) -> nn.Module:
        raise TypeError("fc would stay in float; pass allow_float=True to allow it")

    monkeypatch.setattr(quantized, "quantize", quantize)
    np.save(tmp_path / "inputs.npy", np.zeros((2, 3, 20, 20), np.float32))
    options = ["--output", tmp_path / "m.pt", "--int8", "--calibration", tmp_path / "inputs.npy"]
    assert "pass --allow-float to allow it" in command_error(f"{package}:net", checkpoint, *options)


def test_invalid_ranges(package: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"{package}:net", str(checkpoint), "--output", str(tmp_path / "a.onnx"), "--int8", "--ranges", "101"])
    assert (
        "must be histogram, minmax, percentile, mse, auto or a number above 0 and at most 100"
        in capsys.readouterr().err
    )


def test_invalid_options(package: str, checkpoint: Path, tmp_path: Path, command_error: Callable[..., str]) -> None:
    start = (f"{package}:net", checkpoint, "--output")
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((2, 3, 8, 8), np.float32))
    assert "must end in .mlpackage, .onnx, .pt, .pt2, .pte" in command_error(*start, tmp_path / "a.bin")
    assert "--int8 needs --calibration PATH" in command_error(*start, tmp_path / "a.pt", "--int8")
    assert "--format onnx-qdq needs --cal" in command_error(*start, tmp_path / "a.onnx", "--format", "onnx-qdq")
    assert "pass --int8" in command_error(*start, tmp_path / "a.pt", "--calibration", images)
    for option in ("--backend x86", "--vnni", "--ranges auto", "--no-check", "--exclude fc", "--tolerance 30"):
        assert "pass --int8" in command_error(*start, tmp_path / "a.pt", *option.split())
    int8 = ("--int8", "--calibration", images)
    assert "pass --format onnx-qdq for int8" in command_error(*start, tmp_path / "a.onnx", "--format", "onnx", *int8)
    assert "[8, 8], got [9, 9]" in command_error(*start, tmp_path / "a.pt", *int8, "--image-size", "9")
    assert "one or two numbers, got 3" in command_error(*start, tmp_path / "a.pt", "--image-size", "9", "9", "9")
    assert "existing folder" in command_error(*start, tmp_path / "none" / "a.pt")


def test_invalid_files(package: str, checkpoint: Path, tmp_path: Path, command_error: Callable[..., str]) -> None:
    name, output = f"{package}:net", ("--output", tmp_path / "a.pt")
    content, wrong = checkpoint.read_bytes(), tmp_path / "wrong.pth"
    assert "none.pth" in command_error(name, tmp_path / "none.pth", *output)
    for damaged in (content[:-100], b"", b"text", content[:200] + bytes(200) + content[400:]):
        wrong.write_bytes(damaged)
        assert "wrong.pth is not a checkpoint" in command_error(name, wrong, *output)
    torch.save(nn.ReLU(), wrong)
    assert "wrong.pth is not a checkpoint: it contains more than tensors" in command_error(name, wrong, *output)
    torch.save({**nn.Linear(1, 1).state_dict(), 3: torch.zeros(1)}, wrong)
    assert "wrong.pth is not a checkpoint: it must contain" in command_error(name, wrong, *output)
    torch.save({"epoch": 3}, wrong)
    assert "wrong.pth is not a checkpoint: it must contain" in command_error(name, wrong, *output)
    fields = torch.load(checkpoint, weights_only=True)
    torch.save({**fields, "kind": "quantization-aware"}, wrong)
    assert "checkpoint of quantization-aware training" in command_error(name, wrong, *output)
    weights = fields["model"]
    torch.save(
        {**fields, "model": {**{k: v for k, v in weights.items() if k != "fc.bias"}, "more": weights["fc.bias"]}}, wrong
    )
    assert "small.py:net: missing fc.bias; unexpected more" in command_error(name, wrong, *output)
    torch.save({**fields, "num_classes": 4}, wrong)
    assert "size mismatch for fc.weight" in command_error(name, wrong, *output)
    torch.save(weights, wrong)  # without the number of classes
    assert "; pass --num-classes if only the last layer differs" in command_error(name, wrong, *output)
    torch.save({**fields, "model": {**weights, "fc.bias": weights["fc.bias"].to(torch.complex64)}}, wrong)
    assert "small.py:net: fc.bias is complex, and real in the model" in command_error(name, wrong, *output)
    for about in ({"num_classes": 3.5}, {"settings": {"image_size": "large"}}, {"settings": {"image_size": 0}}):
        torch.save({**fields, **about}, wrong)
        assert "wrong.pth must have a positive integer as" in command_error(name, wrong, *output)
    for array, message in (
        (np.zeros((2, 3, 8, 8)), "images.npy must contain a float32 tensor, got torch.float64"),
        (np.zeros((2, 1, 8, 8), np.float32), "images.npy must contain inputs of shape N×3×H×W, got"),
        (np.array([None]), "images.npy is not an array saved by numpy.save"),
    ):
        np.save(tmp_path / "images.npy", array)
        int8 = ("--int8", "--calibration", tmp_path / "images.npy")
        assert message in command_error(name, checkpoint, *output, *int8)
    torch.save([1], tmp_path / "list.pt")
    assert "list.pt must contain a float32" in command_error(
        name, checkpoint, *output, "--int8", "--calibration", tmp_path / "list.pt"
    )


def test_invalid_models(package: str, checkpoint: Path, tmp_path: Path, command_error: Callable[..., str]) -> None:
    rest = (checkpoint, "--output", tmp_path / "a.pt")
    assert "must be FILE.py:FUNCTION or package.module:FUNCTION" in command_error(package, *rest)
    assert "none.py" in command_error("none.py:net", *rest)
    assert "has no function 'net2'; its functions are: Net, net, nothing" in command_error(f"{package}:net2", *rest)
    assert "small.py:nothing must accept (num_classes=3)" in command_error(f"{package}:nothing", *rest)
    assert "none.such cannot be imported: ModuleNotFoundError" in command_error("none.such:net", *rest)
    (tmp_path / "bad.py").write_text("import torch\n1 / 0\n")
    assert "bad.py cannot be imported: ZeroDivisionError: division by zero" in command_error(
        f"{tmp_path / 'bad.py'}:f", *rest
    )
    (tmp_path / "bad.py").write_text("def f(num_classes):\n    return num_classes\n")
    assert "bad.py:f must return a module, got int" in command_error(f"{tmp_path / 'bad.py'}:f", *rest)


def test_imports_are_undone(package: str) -> None:
    import json

    before, modules = list(sys.path), set(sys.modules)
    with factory(f"{package}:net") as function:
        assert function.__module__ == "json.models.small"
        assert sys.modules["json.models.small"].net is function
    assert sys.path == before
    assert sys.modules["json"] is json
    assert {name for name in set(sys.modules) - modules if name.startswith("json")} == set()
    with pytest.raises(ValueError, match="has no function"), factory(f"{package}:none"):
        pass
    assert sys.path == before
    assert sys.modules["json"] is json


def test_function_of_a_module(tmp_path: Path, calls: dict[str, Any]) -> None:
    import torchvision

    state = torchvision.models.squeezenet1_1(num_classes=4).state_dict()
    torch.save({"model": state, "num_classes": 4}, tmp_path / "model.pth")
    argv = ["torchvision.models:squeezenet1_1", str(tmp_path / "model.pth"), "--output", str(tmp_path / "a.pt")]
    assert main([*argv, "--image-size", "32"]) == 0
    assert type(calls["export"][0]).__name__ == "SqueezeNet"


def test_keyboard_interrupt(
    package: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(model: nn.Module, batch: Tensor) -> nn.Module:
        raise KeyboardInterrupt

    monkeypatch.setattr(deploy, "fold", interrupt)
    assert main([f"{package}:net", str(checkpoint), "--output", str(tmp_path / "a.pt")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_file_matches_model(package: str, checkpoint: Path, tmp_path: Path) -> None:
    """The command runs in its own process, as a user runs it."""
    output, images = tmp_path / "model.pt", torch.randn(3, 3, 20, 24)
    command = [sys.executable, "-m", "torchvision_layers.deploy"]
    done = subprocess.run(
        [*command, f"{package}:net", str(checkpoint), "--output", str(output)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"{output}: torchscript, 0.0 MB, differs from the model by at most ")
    with factory(f"{package}:net") as function:
        model = function(num_classes=3).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    loaded = deploy.load(output)
    torch.testing.assert_close(loaded(images), model(images).detach())
    assert loaded.metadata["classes"] == ["a", "b", "c"]
    assert loaded.metadata["about"]["test_accuracy"] == 0.5


def test_int8_file(package: str, checkpoint: Path, tmp_path: Path) -> None:
    images, output = torch.randn(64, 3, 20, 20), tmp_path / "model.pt"
    torch.save(images, tmp_path / "images.pt")
    argv = [f"{package}:net", str(checkpoint), "--output", str(output), "--int8"]
    assert main([*argv, "--calibration", str(tmp_path / "images.pt")]) == 0
    loaded = deploy.load(output)
    assert loaded.metadata["quantization"]["engine"] == "eager"
    assert loaded(images).shape == (64, 3)


def test_help_describes_all_formats(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in (*FORMATS, "--calibration", "resnet.py:resnet18"):
        assert word in text


def test_the_tables_of_choices_have_all_formats() -> None:
    assert all(f"model{format.suffix}" in CHOICES for format in FORMATS.values())
    assert max(map(len, CHOICES.splitlines())) <= 120
    assert len(CHOICES.splitlines()) <= 24
    page = (Path(__file__).parents[2] / "docs" / "source" / "deploying.rst").read_text(encoding="utf-8")
    table = page[page.index("list-table") : page.index("Formats\n-------")]
    assert all(f'"model{format.suffix}"' in table for format in FORMATS.values())
    assert all(f'format="{name}"' in table for name in FORMATS if name != "torchscript")


def test_model_with_two_inputs(
    package: str, checkpoint: Path, tmp_path: Path, calls: dict[str, Any], command_error: Callable[..., str]
) -> None:
    Path(package).write_text(SOURCE + TWO_INPUTS)
    error = command_error(f"{package}:two_inputs", checkpoint, "--output", tmp_path / "m.pt")
    assert "must return a model of one image; call deploy.export in Python for another" in error
    assert "missing a required argument: 'other'" in error
