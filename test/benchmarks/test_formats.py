"""The benchmark of exported files; the timings are not tested."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def formats() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        # The benchmarks are scripts, not a package.
        patch.setattr(sys, "path", [str(ROOT / "benchmarks"), str(ROOT / "references" / "classification"), *sys.path])
        yield importlib.import_module("formats")


@pytest.mark.filterwarnings("ignore")  # of runtimes about themselves
@pytest.mark.parametrize("file", ["onnx-qdq", "torchscript int8"])
def test_a_file_runs_alone_and_gives_the_same_classes(formats: ModuleType, file: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    calibration, images = torch.randn(16, 3, 12, 12), torch.randn(8, 3, 12, 12)
    figures = formats.measure(model, calibration, images, formats.ROWS[file], 1, tmp_path)
    assert figures["megabytes"] > 0
    assert figures["time"] > 0
    assert figures["same as the model"] == 1
    assert 25 < figures["decibels"] < 80


def test_figures_are_added_to_the_record(
    formats: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "formats.json"
    record.write_text(json.dumps({"rows": {"resnet18: onnx-qdq": {"megabytes": 1.0}, "resnet18: pt2": {}}}))
    monkeypatch.setattr(formats, "load", lambda *args: (None, None, None))
    monkeypatch.setattr(formats, "measure", lambda *args: {"megabytes": 2.0})
    threads = torch.get_num_threads()
    formats.main(["--only", "resnet18", "--formats", "onnx", "--record", str(record)])
    torch.set_num_threads(threads)
    rows = json.loads(record.read_text())["rows"]
    assert list(rows) == ["resnet18: pt2", "resnet18: onnx", "resnet18: onnx-qdq"]
    assert rows["resnet18: onnx"] == {"megabytes": 2.0}
    assert capsys.readouterr().out == "resnet18: onnx: megabytes 2\n"


def test_the_record_has_files_of_the_benchmark(formats: ModuleType) -> None:
    rows = json.loads(formats.RECORD.read_text())["rows"]
    known = [f"{model}: {file}" for model in formats.MODELS for file in formats.ROWS]
    assert list(rows) == [key for key in known if key in rows]
    assert all(figures["same as the model"] > 0.9 for figures in rows.values() if "time" in figures)
