"""Atomic writes, and output directories."""

import pytest
import torch
from common.runs import files


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_write_keeps_earlier_file(tmp_path, error):
    path = tmp_path / "curves.png"
    path.write_text("earlier")

    def write_half():
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            assert (temporary.parent, temporary.suffix) == (tmp_path, ".png")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_complete_write_replaces_earlier_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("earlier")
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "earlier"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


class Unsavable:
    def __reduce__(self):
        raise RuntimeError("no space")


def test_interrupted_save_keeps_earlier_file(tmp_path):
    path = tmp_path / "checkpoint.pth"
    files.save_atomically({"a": torch.ones(3)}, path)
    with pytest.raises(RuntimeError, match="no space"):
        files.save_atomically({"a": torch.zeros(3), "b": Unsavable()}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_output_dir_is_created(tmp_path):
    path = files.check_output_dir(tmp_path / "a" / "b")
    assert path.is_dir()
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "folder"])
def test_output_dir_must_be_writable(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("content")
    with pytest.raises(OSError, match=r"output_dir .*cannot be written to") as caught:
        files.check_output_dir(file / below)
    assert str(file / below) in str(caught.value)
    assert file.read_text() == "content"
