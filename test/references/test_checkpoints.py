"""Checkpoints: what is accepted, and what survives a failed write."""

import os
import signal
import zipfile

import pytest
import torch
from common.runs import checkpoints, files
from PIL import Image
from torch import nn


def checkpoint_of(model: nn.Module) -> dict:
    return {"model": model.state_dict(), "model_name": "resnet18", "num_classes": 10, "classes": list("0123456789")}


def test_round_trip(tmp_path):
    model = nn.Linear(2, 3)
    files.save_atomically(checkpoint_of(model), tmp_path / "model.pth")
    checkpoint = checkpoints.load_checkpoint(tmp_path / "model.pth", "resnet18", 10)
    assert torch.equal(checkpoint["model"]["weight"], model.weight)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.pth"):
        checkpoints.load_checkpoint(tmp_path / "model.pth", "resnet18", 10)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_truncated_checkpoint(tmp_path, share):
    path = tmp_path / "model.pth"
    files.save_atomically(checkpoint_of(nn.Linear(100, 100)), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.pth is damaged or not a checkpoint") as caught:
        checkpoints.load_checkpoint(path, "resnet18", 10)
    assert "\n" not in str(caught.value)


def test_foreign_files(tmp_path):
    text, image, code, tensors = (tmp_path / name for name in ("text", "image.png", "code.pth", "tensors.pth"))
    text.write_text("not a checkpoint")
    Image.new("RGB", (8, 8)).save(image)
    torch.save(nn.Linear(2, 2), code)  # a pickled object, which could run code when loaded
    for path in (text, image, code):
        with pytest.raises(ValueError, match=f"{path.name} is damaged or not a checkpoint"):
            checkpoints.load_checkpoint(path, "resnet18", 10)
    for foreign in ([torch.ones(2)], nn.Linear(2, 2).state_dict()):
        torch.save(foreign, tensors)
        with pytest.raises(ValueError, match=r"tensors.pth is not a checkpoint of these scripts"):
            checkpoints.load_checkpoint(tensors, "resnet18", 10)


@pytest.mark.parametrize(("name", "num_classes"), [("resnet50", 10), ("resnet18", 2)])
def test_checkpoint_of_another_model(tmp_path, name, num_classes):
    files.save_atomically(checkpoint_of(nn.Linear(2, 2)), tmp_path / "model.pth")
    message = f"model.pth is a checkpoint of resnet18 with 10 classes, not of {name} with {num_classes}"
    with pytest.raises(ValueError, match=message):
        checkpoints.load_checkpoint(tmp_path / "model.pth", name, num_classes)


def test_checkpoint_with_one_wrong_byte(tmp_path):
    """``torch.load`` does not detect it."""
    path = tmp_path / "model.pth"
    files.save_atomically(checkpoint_of(nn.Linear(50, 50)), path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + 500] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r"model\.pth is damaged or not a checkpoint"):
        checkpoints.load_checkpoint(path, "resnet18", 10)


def test_last_two_checkpoints_are_kept(tmp_path):
    path = tmp_path / "checkpoint.pth"
    for number in range(3):
        checkpoints.save_checkpoint({"number": number}, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pth", "checkpoint_before.pth"]
    assert [torch.load(file)["number"] for file in (path, checkpoints.previous(path))] == [2, 1]


def read_number(path):
    number = torch.load(path)["number"]
    if number < 0:
        raise ValueError(f"{path.name} is bad")
    return number


def test_previous_checkpoint_replaces_bad_one(tmp_path, capsys):
    path = tmp_path / "checkpoint.pth"
    assert checkpoints.read_last_good(path, read_number) is None
    checkpoints.save_checkpoint({"number": 1}, path)
    assert checkpoints.read_last_good(path, read_number) == 1
    assert capsys.readouterr().err == ""
    checkpoints.save_checkpoint({"number": -1}, path)
    assert checkpoints.read_last_good(path, read_number) == 1
    problem, fallback = capsys.readouterr().err.splitlines()
    assert problem == "warning: checkpoint.pth is bad"
    assert fallback.endswith("checkpoint_before.pth, the previous checkpoint")
    checkpoints.save_checkpoint({"number": -2}, path)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be resumed: checkpoint.pth is bad; ch"):
        checkpoints.read_last_good(path, read_number)
    path.unlink()
    checkpoints.previous(path).unlink()
    checkpoints.save_checkpoint({"number": 3}, checkpoints.previous(path))  # as after a kill between the two renames
    assert checkpoints.read_last_good(path, read_number) == 3


def test_full_disk_keeps_earlier_files(tmp_path):
    """A limit of the file size simulates a full disk: writing fails halfway."""
    path = tmp_path / "checkpoint.pth"
    for number in range(2):
        checkpoints.save_checkpoint({"number": number}, path)
    resource = pytest.importorskip("resource", reason="needs POSIX to limit file sizes")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        for save in (checkpoints.save_checkpoint, files.save_atomically):
            with pytest.raises(OSError, match=r"checkpoint\.pth cannot be written: File too large"):
                save({"number": 2, "much": torch.rand(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pth", "checkpoint_before.pth"]
    assert [torch.load(file)["number"] for file in (path, checkpoints.previous(path))] == [1, 0]


@pytest.mark.parametrize("calls", range(4))
def test_kill_at_any_step_of_a_save_leaves_a_good_checkpoint(tmp_path, monkeypatch, calls):
    """The kill comes before any of the system calls that rename or sync a file."""
    path = tmp_path / "checkpoint.pth"
    for number in range(2):
        checkpoints.save_checkpoint({"number": number}, path)

    class Killed(BaseException):
        pass

    remaining = calls

    def limited(function):
        def call(*args):
            nonlocal remaining
            if remaining == 0:
                raise Killed
            remaining -= 1
            return function(*args)

        return call

    monkeypatch.setattr(os, "replace", limited(os.replace))
    monkeypatch.setattr(os, "fsync", limited(os.fsync))
    with pytest.raises(Killed):
        checkpoints.save_checkpoint({"number": 2}, path)
    monkeypatch.undo()
    assert checkpoints.read_last_good(path, read_number) in (1, 2)
    assert checkpoints.read_last_good(checkpoints.previous(path), read_number) in (0, 1)
