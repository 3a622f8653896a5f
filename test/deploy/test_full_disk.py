"""If the disk is full during a write, the earlier file stays and no other file is left."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from torchvision_layers import deploy
from torchvision_layers._utils.atomic import atomic_path
from torchvision_layers.deploy.formats import aoti
from torchvision_layers.deploy.formats.table import FORMATS

from ._support import CASES, example, float_model, int8_model

WRITERS = ["torchscript", "torchscript-int8", "pt2", "onnx", "onnx-qdq", "aoti"]


def fill_up(path: Path, content: bytes) -> int:
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_keeps_earlier_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    path = tmp_path / f"model{case.suffix}"
    model = float_model() if case.engine is None else int8_model(case.engine)
    path.write_bytes(b"earlier")
    if case.format == "aoti":  # no need to compile

        def package(program, package_path, inductor_configs) -> None:
            package_path.write(b"PK\x05\x06" + bytes(18))

        monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match="No space left") as caught:
        deploy.export(model, example(), path, format=case.format)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == [path.name]


@pytest.fixture
def no_long_files() -> Iterator[None]:
    """Makes the system stop writes after some bytes, as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits of files are of POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("format", ["torchscript", "pt2", "onnx"])
def test_interrupted_write_keeps_earlier_file(format: str, tmp_path: Path, no_long_files: None) -> None:
    path = tmp_path / f"model{FORMATS[format].suffix}"
    path.write_bytes(b"earlier")
    with pytest.raises(OSError, match="File too large"):
        deploy.export(float_model(), example(), path, format=format)
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == [path.name]


def test_full_disk_during_compilation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(aoti.tempfile, "tempdir", None)

    def package(program, package_path, inductor_configs) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    with pytest.raises(OSError, match="No space left"):
        deploy.export(float_model(), example(), tmp_path / "model.pt2", format="aoti")
    assert os.listdir(tmp_path) == []


def interrupt_write(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("second")
        raise KeyboardInterrupt


def test_atomic_path(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    with atomic_path(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".txt")
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(KeyboardInterrupt):
        interrupt_write(path)
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["report.txt"]


def test_atomic_path_follows_links_and_respects_umask(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "model.pt", tmp_path / "link.pt"
    target.write_text("first")
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        temporary.write_text("second")
    assert link.is_symlink()
    assert target.read_text() == "second"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert target.stat().st_mode == plain.stat().st_mode


def test_atomic_path_without_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "model.pt"):
        pass
    assert os.listdir(tmp_path) == []
