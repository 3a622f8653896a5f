"""Damaged and foreign files raise an error that names the file, and never give wrong outputs."""

import io
import pickle
import random
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchvision_layers import deploy
from torchvision_layers.deploy.integrity.checksum import Container, append_checksum

from ._support import CASES, FAST, SLOW, example

ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def load_error(path: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        deploy.load(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ALL)
def test_truncated_file(name: str, case_file, tmp_path: Path) -> None:
    content = case_file(name).path.read_bytes()
    numbers = random.Random(0)
    ends = {0, 1, 3, 4, 8, 22, 30, 64, 100, *(len(content) - n for n in (1, 2, 22, 64, 97, 98, 120, 121, 200))}
    ends |= {numbers.randrange(len(content)) for _ in range(60)}
    path = tmp_path / "damaged.pt2"
    for end in ends:
        path.write_bytes(content[:end])
        assert "cut off" in load_error(path)


@pytest.mark.parametrize("name", ALL)
def test_flipped_byte(name: str, case_file, tmp_path: Path) -> None:
    content = bytearray(case_file(name).path.read_bytes())
    numbers = random.Random(1)
    offsets = {*range(64), *range(len(content) - 150, len(content))}
    offsets |= {numbers.randrange(len(content)) for _ in range(200)}
    path = tmp_path / "damaged.pt2"
    for offset in offsets:
        before = content[offset]
        content[offset] = numbers.choice([before ^ 1 << numbers.randrange(8), before ^ 0xFF, (before + 1) % 256])
        path.write_bytes(content)
        load_error(path)
        content[offset] = before
    path.write_bytes(content)
    deploy.load(path)


@pytest.mark.parametrize("name", ALL)
def test_additional_bytes(name: str, case_file, tmp_path: Path) -> None:
    path, content = tmp_path / "longer.pt2", case_file(name).path.read_bytes()
    for more in (b"\0", b"PK", content):
        path.write_bytes(content + more)
        load_error(path)
    path.write_bytes(b"\0" + content)
    load_error(path)


@pytest.mark.parametrize("name", ALL)
def test_format_does_not_depend_on_file_name(name: str, case_file, tmp_path: Path) -> None:
    path = tmp_path / "no suffix"
    path.write_bytes(case_file(name).path.read_bytes())
    loaded = deploy.load(str(path))
    assert loaded.format == CASES[name].format
    assert torch.equal(loaded(example()), deploy.load(case_file(name).path)(example()))


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


def saved(value: object) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def scripted() -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), content)
    return content.getvalue()


def program() -> bytes:
    content = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), content)
    return content.getvalue()


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return content.getvalue()


FOREIGN = {
    "empty": lambda marker: b"",
    "text": lambda marker: b"hello, world\n" * 100,
    "random": lambda marker: random.Random(2).randbytes(5000),
    "picture": lambda marker: b"\x89PNG\r\n\x1a\n" + random.Random(3).randbytes(500),
    "zeros": lambda marker: bytes(5000),
    "pickle": lambda marker: pickle.dumps(Calls(marker)),
    "saved pickle": lambda marker: saved(Calls(marker)),
    "state dict": lambda marker: saved(nn.Linear(2, 2).state_dict()),
    "torchscript": lambda marker: scripted(),
    "program": lambda marker: program(),
    "zip": lambda marker: zipped(),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_file_is_not_run(kind: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "foreign.pt2", tmp_path / "marker"
    path.write_bytes(FOREIGN[kind](marker))
    load_error(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", [kind for kind in FOREIGN if kind not in ("empty", "picture", "zeros")])
def test_foreign_file_with_checksum_is_not_run(kind: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "foreign.pt2", tmp_path / "marker"
    content = FOREIGN[kind](marker)
    path.write_bytes(append_checksum(content, Container.ZIP if content[:2] == b"PK" else Container.ONNX))
    load_error(path)
    assert not marker.exists()


def test_onnx_model_without_metadata(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n"])
    node = onnx.helper.make_node("Identity", ["input"], ["output"])
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["n"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [output]), ir_version=10)
    model.opset_import[0].version = 20
    path = tmp_path / "foreign.onnx"
    path.write_bytes(append_checksum(model.SerializeToString(), Container.ONNX))
    assert "metadata.json" in load_error(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.pt does not exist"):
        deploy.load(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is not a file"):
        deploy.load(tmp_path)


@pytest.mark.parametrize("name", FAST)
def test_inputs_are_checked_before_the_model_runs(name: str, case_file) -> None:
    loaded = deploy.load(case_file(name).path)
    for wrong, message in (
        (torch.zeros(1, 4, 16, 16), "size 3 in dimension 1, got shape"),
        (torch.zeros(3, 16, 16), "4 dimensions"),
        (torch.zeros(1, 3, 0, 16), "no empty dimension except"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded(wrong)
    for wrong in (torch.zeros(1, 3, 16, 16).double(), [1.0], torch.zeros(1, 3, 16, 16, dtype=torch.uint8)):
        with pytest.raises(TypeError, match="input must be a float32 tensor"):
            loaded(wrong)


def test_providers(case_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime gets the providers and their options; others are refused, with those that it has."""
    onnxruntime = pytest.importorskip("onnxruntime")
    case, sessions = case_file("onnx"), []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            sessions.append(self)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    options = {"arena_extend_strategy": "kSameAsRequested"}
    loaded = deploy.load(case.path, threads=1, providers=[("CPUExecutionProvider", options)])
    torch.testing.assert_close(loaded(example()), deploy.load(case.path)(example()))
    assert sessions[0].get_providers() == ["CPUExecutionProvider"]
    assert sessions[0].get_session_options().intra_op_num_threads == 1
    with pytest.raises(ValueError, match=r"must be among .*CPUExecutionProvider.* here, got 'ROCExecutionProvider'"):
        deploy.load(case.path, providers=["ROCExecutionProvider", "CPUExecutionProvider"])
    for wrong in (
        "CPUExecutionProvider",
        [],
        [3],
        ["CPUExecutionProvider", ("a", {}, 1)],
        [("CPUExecutionProvider", 3)],
    ):
        with pytest.raises(TypeError, match="providers must be a sequence of names"):
            deploy.load(case.path, providers=wrong)  # type: ignore[arg-type]


def test_threads_and_providers_of_other_formats(case_file: Any) -> None:
    path = case_file("torchscript").path
    with pytest.raises(
        ValueError, match="providers must be None for .* in format 'torchscript': they are for onnx and"
    ):
        deploy.load(path, providers=["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"threads must be None for .*: call torch.set_num_threads\(2\)"):
        deploy.load(path, threads=2)
