import os
import signal
import zipfile

import checkpoints
import pytest
import torch
from PIL import Image
from torch import nn


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, error):
    path = tmp_path / "curves.png"
    path.write_text("earlier")

    def write_half():
        with checkpoints.atomic_path(path) as temporary:
            temporary.write_text("half")
            assert (temporary.parent, temporary.suffix) == (tmp_path, ".png")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_write_replaces_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("earlier")
    with checkpoints.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "earlier"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


class Unsavable:
    def __reduce__(self):
        raise RuntimeError("no space")


def test_an_interrupted_save_leaves_the_earlier_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pth"
    checkpoints.save_atomically({"a": torch.ones(3)}, path)
    with pytest.raises(RuntimeError, match="no space"):
        checkpoints.save_atomically({"a": torch.zeros(3), "b": Unsavable()}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def checkpoint_of(model: nn.Module) -> dict:
    return {"model": model.state_dict(), "model_name": "resnet18", "num_classes": 10, "classes": list("0123456789")}


def test_a_checkpoint_comes_back(tmp_path):
    model = nn.Linear(2, 3)
    checkpoints.save_atomically(checkpoint_of(model), tmp_path / "model.pth")
    found = checkpoints.load_checkpoint(tmp_path / "model.pth", "resnet18", 10)
    assert torch.equal(found["model"]["weight"], model.weight)


def test_a_checkpoint_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.pth"):
        checkpoints.load_checkpoint(tmp_path / "model.pth", "resnet18", 10)


@pytest.mark.parametrize("kept", [0, 0.001, 0.5, 0.99])
def test_a_checkpoint_that_is_cut_short(tmp_path, kept):
    path = tmp_path / "model.pth"
    checkpoints.save_atomically(checkpoint_of(nn.Linear(100, 100)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"model\.pth is not a checkpoint, or a damaged one") as caught:
        checkpoints.load_checkpoint(path, "resnet18", 10)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoints(tmp_path):
    text, picture, code, tensors = (tmp_path / name for name in ("text", "picture.png", "code.pth", "tensors.pth"))
    text.write_text("not a checkpoint")
    Image.new("RGB", (8, 8)).save(picture)
    torch.save(nn.Linear(2, 2), code)  # a pickled object, which could run code of its own when loaded
    for path in (text, picture, code):
        with pytest.raises(ValueError, match=f"{path.name} is not a checkpoint, or a damaged one"):
            checkpoints.load_checkpoint(path, "resnet18", 10)
    for foreign in ([torch.ones(2)], nn.Linear(2, 2).state_dict()):
        torch.save(foreign, tensors)
        with pytest.raises(ValueError, match=r"tensors.pth is not a checkpoint of these scripts"):
            checkpoints.load_checkpoint(tensors, "resnet18", 10)


@pytest.mark.parametrize("wanted", [("resnet50", 10), ("resnet18", 2)])
def test_a_checkpoint_of_another_model(tmp_path, wanted):
    checkpoints.save_atomically(checkpoint_of(nn.Linear(2, 2)), tmp_path / "model.pth")
    message = f"model.pth is a checkpoint of resnet18 with 10 classes, not of {wanted[0]} with {wanted[1]}"
    with pytest.raises(ValueError, match=message):
        checkpoints.load_checkpoint(tmp_path / "model.pth", *wanted)


def test_a_checkpoint_with_one_wrong_byte(tmp_path):
    """torch.load alone takes it."""
    path = tmp_path / "model.pth"
    checkpoints.save_atomically(checkpoint_of(nn.Linear(50, 50)), path)
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    whole[largest.header_offset + 500] ^= 1
    path.write_bytes(whole)
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r"model\.pth is not a checkpoint, or a damaged one"):
        checkpoints.load_checkpoint(path, "resnet18", 10)


def test_the_last_two_checkpoints_are_kept(tmp_path):
    path = tmp_path / "checkpoint.pth"
    for number in range(3):
        checkpoints.save_checkpoint({"number": number}, path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["checkpoint.pth", "checkpoint_before.pth"]
    assert [torch.load(found)["number"] for found in (path, checkpoints.before(path))] == [2, 1]


def read_number(path):
    number = torch.load(path)["number"]
    if number < 0:
        raise ValueError(f"{path.name} is bad")
    return number


def test_the_one_before_is_taken_where_the_last_is_bad(tmp_path, capsys):
    path = tmp_path / "checkpoint.pth"
    assert checkpoints.first_good(path, read_number) is None
    checkpoints.save_checkpoint({"number": 1}, path)
    assert checkpoints.first_good(path, read_number) == 1
    assert capsys.readouterr().err == ""
    checkpoints.save_checkpoint({"number": -1}, path)
    assert checkpoints.first_good(path, read_number) == 1
    warning, used = capsys.readouterr().err.splitlines()
    assert warning == "warning: checkpoint.pth is bad"
    assert used.endswith("checkpoint_before.pth, the one before, is used")
    checkpoints.save_checkpoint({"number": -2}, path)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be resumed: checkpoint.pth is bad; ch"):
        checkpoints.first_good(path, read_number)
    path.unlink()
    checkpoints.before(path).unlink()
    checkpoints.save_checkpoint({"number": 3}, checkpoints.before(path))  # a kill between the two renames leaves this
    assert checkpoints.first_good(path, read_number) == 3


def test_a_full_disk_is_named_and_leaves_the_earlier_files(tmp_path):
    """The limit of a file's size stands in for the disk's: writing fails in the middle, as there."""
    path = tmp_path / "checkpoint.pth"
    for number in range(2):
        checkpoints.save_checkpoint({"number": number}, path)
    resource = pytest.importorskip("resource", reason="limits of files are of POSIX")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        for save in (checkpoints.save_checkpoint, checkpoints.save_atomically):
            with pytest.raises(OSError, match=r"checkpoint\.pth cannot be written: File too large"):
                save({"number": 2, "much": torch.rand(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["checkpoint.pth", "checkpoint_before.pth"]
    assert [torch.load(found)["number"] for found in (path, checkpoints.before(path))] == [1, 0]


@pytest.mark.parametrize("calls", range(4))
def test_a_kill_at_any_step_of_a_save_leaves_a_good_checkpoint(tmp_path, monkeypatch, calls):
    """Each system call that changes the folder, or makes a file last, is where a process may end."""
    path = tmp_path / "checkpoint.pth"
    for number in range(2):
        checkpoints.save_checkpoint({"number": number}, path)

    class Killed(BaseException):
        pass

    left = calls

    def counted(function):
        def call(*args):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return function(*args)

        return call

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    with pytest.raises(Killed):
        checkpoints.save_checkpoint({"number": 2}, path)
    monkeypatch.undo()
    assert checkpoints.first_good(path, read_number) in (1, 2)
    assert checkpoints.first_good(checkpoints.before(path), read_number) in (0, 1)
