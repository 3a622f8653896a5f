"""Models and output of the int8 benchmark; the timings themselves are not tested."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """The script with small images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # the benchmarks are scripts, not a package
        module = importlib.import_module("quantized")
        patch.setattr(module, "SIZE", 64)
        yield module


def test_the_models_differ_only_by_rounding(benchmark: ModuleType) -> None:
    """Both are int8 and close to the float model, whose statistics differ from the defaults."""
    torch.manual_seed(0)
    batch = torch.randn(4, 3, 64, 64)
    engine = torch.backends.quantized.engine
    models = benchmark.build("resnet18", "x86", batch)
    assert torch.backends.quantized.engine == engine
    assert float(models.float.bn1.running_var.mean()) != pytest.approx(1.0, abs=0.1)
    with torch.no_grad():
        expected = models.float(batch)
        assert models.pt2e is None
        for model in (models.ours, models.theirs):
            assert not any(isinstance(module, nn.Conv2d) for module in model.modules())
            assert 15 < benchmark.decibels(expected, model(batch)) < 60


def test_rewritten_models_are_torchvisions_own(benchmark: ModuleType) -> None:
    torch.manual_seed(0)
    models = benchmark.build("resnet18", "x86", torch.randn(4, 3, 64, 64), rewritten=True)
    assert type(models.float) is torchvision.models.ResNet
    assert type(models.ours.model).__name__ == "ResNet"
    assert not any(isinstance(module, nn.Conv2d) for module in models.ours.modules())


def test_the_table_names_model_backend_batch_and_target(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "interleave", lambda calls, rounds: {name: [1.0] for name in calls})
    threads = torch.get_num_threads()
    argv = ["--only", "resnet18", "--backends", "x86", "--batches", "1", "2", "--rounds", "1"]
    benchmark.main([*argv, "--json", str(tmp_path / "int8.json")])
    torch.set_num_threads(threads)
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert head == ["model", "backend", "images", "ours", "target", "float", "pt2e", "dB", "ours", "theirs"]
    assert [row[:7] for row in rows] == [
        ["resnet18", "x86", "1", "1.00", "1.00", "1.00", "–"],
        ["resnet18", "x86", "2", "1.00", "1.00", "1.00", "–"],
    ]
    for row, written in zip(rows, json.loads((tmp_path / "int8.json").read_text())["rows"], strict=True):
        assert [written["model"], written["backend"], str(written["images"])] == row[:3]
        assert (written["ours"], written["pt2e"]) == ({"ratio": 1.0, "quartiles": [1.0, 1.0]}, None)
        assert [f"{value:.1f}" for value in written["decibels"]] == row[7:]


def test_the_figures_in_the_docs_match_the_models(benchmark: ModuleType) -> None:
    rows = json.loads((BENCHMARKS.parent / "docs/source/benchmarks_int8.json").read_text())["rows"]
    recorded = {(row["model"], row["backend"], row["images"]): row["target"] for row in rows}
    expected = {
        (name, backend, batch): target
        for name, target in benchmark.TARGETS.items()
        for backend in benchmark.BACKENDS
        for batch in (1, 8)
    }
    assert recorded == expected


def test_baseline_comes_first(benchmark: ModuleType) -> None:
    """The figures are relative to the time of torchvision's model."""
    ratios = benchmark.ratios({"theirs": [2.0, 2.0], "ours": [1.0, 1.0], "float": [6.0, 6.0]})
    assert benchmark.Models._fields[0] == "theirs"
    assert (ratios["ours"].value, ratios["float"].value) == (0.5, 3.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # from inductor
def test_the_compiled_graph_runs_beside_the_others(benchmark: ModuleType) -> None:
    models = benchmark.build("resnet18", "x86", torch.randn(4, 3, 64, 64), compiled=True)
    assert list(benchmark.measure(models, torch.randn(2, 3, 64, 64), 1)) == ["theirs", "ours", "float", "pt2e"]
