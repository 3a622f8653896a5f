"""Both engines in train_quantization.py, on a model of two layers that exports quickly."""

import re
import shutil
from pathlib import Path

import evaluate_exported
import models
import pytest
import torch
import train
import train_quantization
from common.runs.checkpoints import save_checkpoint
from common.runs.files import save_atomically
from torch import nn

from torchvision_layers import nn as tnn

from ._support import load


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "small", small)


def small(num_classes: int, width_mult: float = 1.0, depth_mult: float = 1.0) -> nn.Module:
    body = [tnn.ConvNormAct(3, 8, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*body, nn.Linear(8, num_classes))


def train_small(photos: Path, folder: Path) -> Path:
    """Trains for one epoch of four batches and returns the path of the weights."""
    argv = ["--model", "small", "--epochs", "1", "--output-dir", str(folder), *options_for(photos)]
    train.main(train.get_parser().parse_args(argv))
    return folder / "model.pth"


def quantize_small(photos: Path, weights: Path, output_dir: Path, *extra: str) -> dict[str, float]:
    argv = ["--model", "small", "--weights", str(weights), "--output-dir", str(output_dir), *options_for(photos)]
    return train_quantization.main(train_quantization.get_parser().parse_args([*argv, *extra]))


def options_for(photos: Path) -> list[str]:
    return ["--dataset", "imagefolder", "--data-path", str(photos), "--image-size", "16", "--batch-size", "4"]


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_report(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str) -> None:
    weights = train_small(photos, tmp_path)
    quantize_small(photos, weights, tmp_path, "--engine", engine)
    assert "fused into" not in capsys.readouterr().out
    quantize_small(photos, weights, tmp_path, "--engine", engine, "--report")
    table, _, line = capsys.readouterr().out.strip().rpartition("\n")
    assert re.search(r"BatchNorm2d.*fused into 0\.", table)
    assert line.startswith(f"small in {engine} on x86, post-training: test accuracy float")


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_resumed_training_is_bit_equal(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Resumes after each of three epochs; the last two are frozen."""
    weights = train_small(photos, tmp_path)
    options = ["--qat", "--engine", engine, "--epochs", "3", "--frozen-epochs", "2", "--lr", "0.05"]
    copies: list[Path] = []

    def save_and_copy(state: dict, path: Path) -> None:
        save_checkpoint(state, path)
        copies.append(shutil.copy(path, tmp_path / f"after_epoch_{len(copies) + 1}.pth"))

    with monkeypatch.context() as patch:
        patch.setattr(train_quantization, "save_checkpoint", save_and_copy)
        quantize_small(photos, weights, tmp_path / "complete", *options)
    assert [entry["is_frozen"] for entry in load(copies[2])["history"]] == [False, True, True]
    final, images = load(tmp_path / "complete" / "checkpoint_qat.pth"), torch.rand(5, 3, 16, 16)
    suffix = "pt2" if engine == "pt2e" else "pt"
    expected = evaluate_exported.load_exported(tmp_path / "complete" / f"int8_qat.{suffix}")[0](images)
    changed = [key for key, value in load(copies[0])["model"].items() if not torch.equal(value, final["model"][key])]
    assert any("weight" in key for key in changed)

    for number, checkpoint in enumerate(copies, start=1):
        output_dir = tmp_path / f"resumed_{number}"
        torch.rand(number)  # states of generators must not matter
        quantize_small(photos, weights, output_dir, *options, "--resume", str(checkpoint))
        if number < 3:
            resumed = load(output_dir / "checkpoint_qat.pth")
            assert resumed["history"] == final["history"]
            assert resumed["model"].keys() == final["model"].keys()
            for key, value in final["model"].items():
                assert torch.equal(resumed["model"][key], value), key
        output = evaluate_exported.load_exported(output_dir / f"int8_qat.{suffix}")[0](images)
        assert torch.equal(output, expected)


def test_checkpoints_of_other_runs(photos: Path, tmp_path: Path) -> None:
    weights = train_small(photos, tmp_path)
    options = ["--qat", "--epochs", "1", "--output-dir", str(tmp_path)]
    quantize_small(photos, weights, tmp_path, *options)
    checkpoint = tmp_path / "checkpoint_qat.pth"
    for extra, message in [
        (["--lr", "0.5"], "checkpoint_qat.pth was made with lr 0.001, not 0.5"),
        (["--engine", "pt2e"], "checkpoint_qat.pth was made with engine eager, not pt2e"),
        (["--resume", str(tmp_path / "checkpoint.pth")], "of float training, not of quantization-aware training"),
    ]:
        with pytest.raises(ValueError, match=message):
            quantize_small(photos, weights, tmp_path, *options, "--resume", str(checkpoint), *extra)
    with pytest.raises(ValueError, match="resume needs qat"):
        quantize_small(photos, weights, tmp_path, "--resume", str(checkpoint))
    with pytest.raises(ValueError, match="of quantization-aware training, not of float training"):
        quantize_small(photos, checkpoint, tmp_path)
    other = ["--weights", str(shifted(weights, tmp_path / "shifted.pth"))]
    with pytest.raises(ValueError, match="checkpoint_qat.pth was made with weights"):
        quantize_small(photos, weights, tmp_path, *options, "--resume", str(checkpoint), *other)


def shifted(weights: Path, path: Path) -> Path:
    """Copies a checkpoint with another bias."""
    checkpoint = load(weights)
    checkpoint["model"]["4.bias"] += 1
    save_atomically(checkpoint, path)
    return path


def test_exported_graph(photos: Path, tmp_path: Path) -> None:
    """It accepts batches of any size and cannot be trained; a damaged or truncated file raises an error."""
    quantize_small(photos, train_small(photos, tmp_path), tmp_path, "--engine", "pt2e")
    path = tmp_path / "int8.pt2"
    model, about = evaluate_exported.load_exported(path)
    assert (about["engine"], about["backend"]) == ("pt2e", "x86")
    images = torch.rand(5, 3, 16, 16)
    for count in (1, 2, 5):
        torch.testing.assert_close(model(images[:count]), model(images)[:count])
    assert not model.eval().training
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.train()

    content = path.read_bytes()
    for damaged in (content[:-1000], content.replace(b"quantize_per_tensor", b"quantize_per_sensor")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="int8.pt2 is damaged or not an exported model"):
            evaluate_exported.load_exported(path)
