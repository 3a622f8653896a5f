"""Table of the benchmark of ``quantize`` itself; the timings are not tested."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # the benchmarks are scripts, not a package
        yield importlib.import_module("quantize_time")


@pytest.mark.filterwarnings("ignore")  # torch deprecates FX mode
@pytest.mark.parametrize("engine", ["pt2e", "eager"])
def test_the_other_workflow_gives_int8(benchmark: ModuleType, engine: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    batch = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected, output = model(batch), benchmark.THEIRS[engine](model, [batch])(batch)
    assert 0 < float((output - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_the_table_names_model_engine_and_target(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda *args: None)
    threads = torch.get_num_threads()
    arguments = ["--only", "resnet50", "--engines", "pt2e", "--calibration", "4x3"]
    benchmark.main([*arguments, "--json", str(tmp_path / "time.json")])
    torch.set_num_threads(threads)
    head, row = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert head == ["model", "engine", "set", "ours", "target"]
    assert row == ["resnet50", "pt2e", "4x3", "–", "1.50"]
    recorded = json.loads((tmp_path / "time.json").read_text())["rows"][0]
    assert (recorded["images"], recorded["batches"], recorded["ours"]) == (4, 3, None)
