"""train_quantization.py, evaluate_exported.py and the parts of demo.py, on a small model."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import demo
import deployment
import evaluate_exported
import models
import pytest
import train
import train_quantization
from common.runs.files import save_atomically
from common.tables.files import FileRow, files_table
from expecttest import assert_expected_inline
from models import build_model
from PIL import Image
from torch import nn

from ..interpreter import Interpreter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def small_model() -> Iterator[None]:
    """Adds a resnet18 with a sixteenth of the parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet18_tiny", tiny)
        yield


def tiny(num_classes: int, width_mult: float = 1.0, depth_mult: float = 1.0) -> nn.Module:
    return models.resnet.resnet18(num_classes, 0.25 * width_mult, depth_mult)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model after two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    argv = ["--model", "resnet18_tiny", "--epochs", "2", "--image-size", "32", "--output-dir", str(folder)]
    train.main(train.get_parser().parse_args(argv))
    return folder


def quantize(trained: Path, output_dir: Path, *extra: str) -> dict[str, float]:
    argv = ["--model", "resnet18_tiny", "--weights", str(trained / "model.pth"), "--image-size", "32"]
    parser = train_quantization.get_parser()
    return train_quantization.main(parser.parse_args([*argv, "--output-dir", str(output_dir), *extra]))


@pytest.mark.parametrize(
    ("engine", "backend"),
    [
        ("eager", "x86"),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("eager", "qnnpack"), ("pt2e", "x86"))),
    ],
)
def test_post_training(
    trained: Path,
    tmp_path: Path,
    engine: str,
    backend: str,
    interpreter: Interpreter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exported model has the accuracy that the script prints, in a process that cannot import the package."""

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return interpreter.run(Path(command[1]), *command[2:])

    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run))
    accuracies = quantize(trained, tmp_path, "--calibration-batches", "2", "--engine", engine, "--backend", backend)
    assert abs(accuracies["int8"] - accuracies["float"]) < 0.05
    path = tmp_path / ("int8.pt2" if engine == "pt2e" else "int8.pt")
    assert list(tmp_path.iterdir()) == [path]
    accuracy, outputs = demo.evaluate_in_new_process(path)
    assert accuracy == accuracies["int8"]
    assert outputs.shape == (364, 10)
    assert path.stat().st_size < (trained / "model.pth").stat().st_size / (2.5 if engine == "pt2e" else 3.5)


@pytest.mark.parametrize(("engine", "suffix"), [("eager", "pt"), pytest.param("pt2e", "pt2", marks=pytest.mark.slow)])
def test_quantization_aware(trained: Path, tmp_path: Path, engine: str, suffix: str) -> None:
    accuracies = quantize(trained, tmp_path, "--qat", "--epochs", "1", "--batch-size", "128", "--engine", engine)
    assert accuracies["int8"] >= accuracies["float"] - 0.02
    arguments = evaluate_exported.get_parser().parse_args([str(tmp_path / f"int8_qat.{suffix}")])
    assert evaluate_exported.main(arguments) == accuracies["int8"]


def test_script_cannot_import_the_package(tmp_path: Path, interpreter: Interpreter) -> None:
    """It fails if a module that it imports imports the package; it cannot import torchao either."""
    scripts = Path(evaluate_exported.__file__).parent
    shutil.copy(scripts / "evaluate_exported.py", tmp_path)
    shutil.copytree(scripts / "common", tmp_path / "common")
    with open(tmp_path / "common" / "data" / "presets.py", "a") as presets:
        presets.write("\nimport sys\nassert sys.modules['torchao'] is None\nimport torchvision_layers\n")
    result = interpreter.run(tmp_path / "evaluate_exported.py", "int8.pt", cwd=ROOT)
    assert "import of torchvision_layers halted" in result.stderr
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "int8.pt does not exist"),
        (b"not a zip", ValueError, "int8.pt is damaged or not an exported model of these scripts"),
    ],
)
def test_files_that_are_not_exported_models(tmp_path: Path, content: bytes | None, error: type, message: str) -> None:
    path = tmp_path / "int8.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        evaluate_exported.load_exported(path)


def test_state_dict_is_not_an_exported_model(tmp_path: Path) -> None:
    save_atomically(build_model("mobilenet_v2", 10).state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth is damaged or not an exported model"):
        evaluate_exported.load_exported(tmp_path / "model.pth")


def test_truncated_exported_model(trained: Path, tmp_path: Path) -> None:
    quantize(trained, tmp_path, "--calibration-batches", "1")
    path = tmp_path / "int8.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="int8.pt is damaged or not an exported model"):
        evaluate_exported.load_exported(path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["--model", "mobilenet_v2"],
            "model.pth is a checkpoint of resnet18_tiny with 10 classes, not of mobilenet_v2",
        ),
        (["--backend", "tensorrt"], "backend must be one of auto, x86, onednn.*got 'tensorrt'"),
        (["--frozen-epochs", "-1"], "frozen_epochs must be at least 0; got -1"),
        (["--image-size", "24"], "model.pth was made with image_size 32, not 24"),
        (["--calibration-batches", "0"], "calibration_batches must be at least 1; got 0"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_arguments(trained: Path, tmp_path: Path, extra: list[str], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        quantize(trained, tmp_path, *extra)


@pytest.mark.parametrize("qat", [[], ["--qat"]])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "fx"], "engine must be 'eager' or 'pt2e', got 'fx'"),
        (["--backend", "xnnpack"], "backend must be one of auto, x86, onednn.*got 'xnnpack'"),
        (["--engine", "pt2e", "--backend", "onednn"], "backend must be one of auto, x86, .*xnnpack.*got 'onednn'"),
        (
            ["--engine", "pt2e", "--backend", "xnnpack"],
            "needs executorch|backend must be x86, litert, onnxruntime or tensorrt to train",
        ),
    ],
)
def test_engine_is_checked_first(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qat: list[str], options: list[str], message: str
) -> None:
    """The check comes before the weights, which do not exist, are read."""
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(ValueError, match=message):
        quantize(trained, tmp_path, "--weights", "nowhere.pth", *qat, *options)


@pytest.mark.slow
def test_demo_for_one_model(tmp_path: Path) -> None:
    """All promises except the accuracy hold after one epoch."""
    settings = demo.DemoSettings(epochs=1, image_size=32, files=["torchscript"], rounds=2)
    row, files = demo.run("resnet18_tiny", tmp_path / "resnet18_tiny", settings)
    assert [(file.model, file.file, file.problem) for file in files] == [("resnet18_tiny", "torchscript", "")]
    assert row.accuracy_fused == row.accuracy_float
    assert row.accuracy_reloaded == row.accuracy_int8
    assert row.is_reload_equal
    assert row.latency_fused > 0
    assert row.latency_int8 > 0
    folder = tmp_path / "resnet18_tiny"
    assert {path.name for path in folder.iterdir()} >= {
        *("int8.pt", "model.pth", "curves.png", "predictions.png", "torchscript.pt")
    }
    for name in ("curves.png", "predictions.png"):
        with Image.open(folder / name) as image:
            image.load()
            assert min(image.size) > 300
    assert "fused into conv1" in (folder / "report.txt").read_text()


ROW = demo.Row("resnet18", 11_181_642, 0.9944, 0.9944, 0.9917, 0.9917, True, 44_800_000, 11_300_000, 0.91, 0.4)


def test_demo_table() -> None:
    assert_expected_inline(
        demo.table([ROW]),
        """\
model     parameters   float   fused    int8  reloaded  equal  float file  int8 file  fused time  int8 time
resnet18  11,181,642  99.44%  99.44%  99.17%    99.17%    yes     44.8 MB    11.3 MB        0.91       0.40""",
    )


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"accuracy_float": 0.9799, "accuracy_fused": 0.9799, "accuracy_int8": 0.9799}, "at least 98 %"),
        ({"accuracy_fused": 0.99}, "fused test accuracy is that of float"),
        ({"accuracy_int8": 0.984}, "within 1 point of float"),
        ({"is_reload_equal": False}, "gives the same outputs"),
    ],
)
def test_demo_names_broken_promises(change: dict[str, float], promise: str) -> None:
    assert ROW.failures() == []
    (failure,) = ROW._replace(**change).failures()
    assert promise in failure


def test_demo_fails_if_an_export_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The tables come first. A missing package does not fail the demo."""
    caplog.set_level(logging.WARNING, "torch")  # restored after the test; the demo silences it
    failed = FileRow("resnet18", "onnx", problem="the file gives other values")
    missing = FileRow("resnet18", "executorch", problem="pip install executorch", is_missing=True)
    monkeypatch.setattr(demo, "run", lambda *_: (ROW, [failed, missing]))
    monkeypatch.setattr(demo, "classify_photographs", lambda folder: f"all agree in {folder.name}")
    args = demo.get_parser().parse_args(["--models", "resnet18", "--output-dir", str(tmp_path)])
    with pytest.raises(ValueError, match="^resnet18 was not written as onnx$"):
        demo.main(args)
    out = capsys.readouterr().out
    assert demo.table([ROW]) in out
    assert "all agree in efficientnet_lite0_imagenet" in out
    assert files_table([failed, missing]) in out
    monkeypatch.setattr(demo, "run", lambda *_: (ROW, [missing]))
    assert demo.main(args) == [ROW]
    assert not logging.getLogger("torch").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(("option", "value"), [("--models", "resnet19"), ("--files", "tflite")])
def test_unknown_choices_of_the_demo(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.get_parser().parse_args([option, value])
    assert f"argument {option}: invalid choice: '{value}'" in capsys.readouterr().err


def test_demo_checks_numbers_before_training(tmp_path: Path) -> None:
    args = demo.get_parser().parse_args(["--rounds", "0", "--output-dir", str(tmp_path / "outputs")])
    with pytest.raises(ValueError, match="rounds must be at least 1; got 0"):
        demo.main(args)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("script", [evaluate_exported, demo, deployment, train, train_quantization])
def test_help(script: ModuleType) -> None:
    """It shows a command on its own line, a help text for each option, and defaults other than None."""
    parser = script.get_parser()
    lines = parser.format_help().splitlines()
    assert any(line.startswith(f"python references/classification/{Path(script.__file__).name} ") for line in lines)
    assert "default: None" not in " ".join(lines)
    for action in parser._actions:
        assert action.help, action.dest
