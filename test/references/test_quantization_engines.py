"""What the engines have in common, on a model of two layers that is exported quickly."""

import re
import shutil
from pathlib import Path

import artefact
import models
import pytest
import torch
import train
import train_quantization
from checkpoints import save_atomically, save_checkpoint
from torch import nn

from torchvision_layers import nn as tnn


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "small", small)


def small(num_classes: int, width_mult: float = 1.0, depth_mult: float = 1.0) -> nn.Module:
    body = [tnn.ConvNormAct(3, 8, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*body, nn.Linear(8, num_classes))


def train_small(photos: Path, folder: Path) -> Path:
    """Weights of the small model after an epoch of four batches."""
    flags = ["--model", "small", "--epochs", "1", "--output-dir", str(folder), *flags_for(photos)]
    train.main(train.get_parser().parse_args(flags))
    return folder / "model.pth"


def quantize_small(photos: Path, weights: Path, output_dir: Path, *extra: str) -> dict[str, float]:
    flags = ["--model", "small", "--weights", str(weights), "--output-dir", str(output_dir), *flags_for(photos)]
    return train_quantization.main(train_quantization.get_parser().parse_args([*flags, *extra]))


def flags_for(photos: Path) -> list[str]:
    return ["--dataset", "imagefolder", "--data-path", str(photos), "--image-size", "16", "--batch-size", "4"]


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_the_report(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str) -> None:
    weights = train_small(photos, tmp_path)
    quantize_small(photos, weights, tmp_path, "--engine", engine)
    assert "fused into" not in capsys.readouterr().out
    quantize_small(photos, weights, tmp_path, "--engine", engine, "--report")
    table, _, line = capsys.readouterr().out.strip().rpartition("\n")
    assert re.search(r"BatchNorm2d.*fused into 0\.", table)
    assert line.startswith(f"small in {engine} on x86, post-training: test accuracy float")


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_training_resumes_to_the_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """From what a run leaves that is killed after any of its epochs, the last two of which are frozen."""
    weights = train_small(photos, tmp_path)
    flags = ["--qat", "--engine", engine, "--epochs", "3", "--frozen-epochs", "2", "--lr", "0.05"]
    left: list[Path] = []

    def save_and_keep(state: dict, path: Path) -> None:
        save_checkpoint(state, path)
        left.append(shutil.copy(path, tmp_path / f"after_epoch_{len(left) + 1}.pth"))

    with monkeypatch.context() as patch:
        patch.setattr(train_quantization, "save_checkpoint", save_and_keep)
        quantize_small(photos, weights, tmp_path / "whole", *flags)
    assert [entry["is_frozen"] for entry in saved(left[2])["history"]] == [False, True, True]
    final, images = saved(tmp_path / "whole" / "checkpoint_qat.pth"), torch.rand(5, 3, 16, 16)
    suffix = "pt2" if engine == "pt2e" else "pt"
    expected = artefact.load_artefact(tmp_path / "whole" / f"int8_qat.{suffix}")[0](images)
    changed = [key for key, value in saved(left[0])["model"].items() if not torch.equal(value, final["model"][key])]
    assert any("weight" in key for key in changed)

    for number, checkpoint in enumerate(left, start=1):
        output_dir = tmp_path / f"resumed_{number}"
        torch.rand(number)  # where the generators stand must not matter
        quantize_small(photos, weights, output_dir, *flags, "--resume", str(checkpoint))
        if number < 3:
            resumed = saved(output_dir / "checkpoint_qat.pth")
            assert resumed["history"] == final["history"]
            assert resumed["model"].keys() == final["model"].keys()
            for key, value in final["model"].items():
                assert torch.equal(resumed["model"][key], value), key
        output = artefact.load_artefact(output_dir / f"int8_qat.{suffix}")[0](images)
        assert torch.equal(output, expected)


def test_checkpoints_that_cannot_be_resumed(photos: Path, tmp_path: Path) -> None:
    weights = train_small(photos, tmp_path)
    flags = ["--qat", "--epochs", "1", "--output-dir", str(tmp_path)]
    quantize_small(photos, weights, tmp_path, *flags)
    checkpoint = tmp_path / "checkpoint_qat.pth"
    for extra, message in [
        (["--lr", "0.5"], "checkpoint_qat.pth was made with lr 0.001, not 0.5"),
        (["--engine", "pt2e"], "checkpoint_qat.pth was made with engine eager, not pt2e"),
        (["--resume", str(tmp_path / "checkpoint.pth")], "of float training, not of quantization-aware training"),
    ]:
        with pytest.raises(ValueError, match=message):
            quantize_small(photos, weights, tmp_path, *flags, "--resume", str(checkpoint), *extra)
    with pytest.raises(ValueError, match="resume needs qat"):
        quantize_small(photos, weights, tmp_path, "--resume", str(checkpoint))
    with pytest.raises(ValueError, match="of quantization-aware training, not of float training"):
        quantize_small(photos, checkpoint, tmp_path)
    other = ["--weights", str(shifted(weights, tmp_path / "shifted.pth"))]
    with pytest.raises(ValueError, match="checkpoint_qat.pth was made with weights"):
        quantize_small(photos, weights, tmp_path, *flags, "--resume", str(checkpoint), *other)


def shifted(weights: Path, path: Path) -> Path:
    """The same checkpoint with another bias."""
    checkpoint = saved(weights)
    checkpoint["model"]["4.bias"] += 1
    save_atomically(checkpoint, path)
    return path


def test_an_exported_artefact(photos: Path, tmp_path: Path) -> None:
    """It takes batches of any size, cannot be trained, and is refused where its graph is damaged or not all there."""
    quantize_small(photos, train_small(photos, tmp_path), tmp_path, "--engine", "pt2e")
    path = tmp_path / "int8.pt2"
    model, about = artefact.load_artefact(path)
    assert (about["engine"], about["backend"]) == ("pt2e", "x86")
    images = torch.rand(5, 3, 16, 16)
    for count in (1, 2, 5):
        torch.testing.assert_close(model(images[:count]), model(images)[:count])
    assert not model.eval().training
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.train()

    whole = path.read_bytes()
    for damaged in (whole[:-1000], whole.replace(b"quantize_per_tensor", b"quantize_per_sensor")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="int8.pt2 is not an artefact"):
            artefact.load_artefact(path)
