"""What the benchmark of int8 models compares and says; how long anything takes is not tested."""

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
    """The script, on small images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # as for the script itself
        module = importlib.import_module("quantized")
        patch.setattr(module, "SIZE", 64)
        yield module


def test_the_models_are_the_same_but_for_rounding(benchmark: ModuleType) -> None:
    """Same weights, int8 both, close to the float model, which has statistics that no default could give."""
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


def test_the_table_names_model_backend_batch_and_aim(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "interleave", lambda calls, rounds: {name: [1.0] for name in calls})
    threads = torch.get_num_threads()
    words = ["--only", "mobilenet_v3_large", "--backends", "x86", "--batches", "1", "2", "--rounds", "1"]
    benchmark.main([*words, "--json", str(tmp_path / "int8.json")])
    torch.set_num_threads(threads)
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert head == ["model", "backend", "images", "ours", "aim", "float", "pt2e", "dB", "ours", "theirs"]
    assert [row[:7] for row in rows] == [
        ["mobilenet_v3_large", "x86", "1", "1.00", "0.90", "1.00", "–"],
        ["mobilenet_v3_large", "x86", "2", "1.00", "0.90", "1.00", "–"],
    ]
    for row, written in zip(rows, json.loads((tmp_path / "int8.json").read_text())["rows"], strict=True):
        assert [written["model"], written["backend"], str(written["images"])] == row[:3]
        assert (written["ours"], written["pt2e"]) == ({"ratio": 1.0, "quartiles": [1.0, 1.0]}, None)
        assert [f"{value:.1f}" for value in written["decibels"]] == row[7:]


def test_the_docs_have_figures_of_the_models_as_they_are(benchmark: ModuleType) -> None:
    rows = json.loads((BENCHMARKS.parent / "docs/source/benchmarks_int8.json").read_text())["rows"]
    found = {(row["model"], row["backend"], row["images"]): row["aim"] for row in rows}
    expected = {
        (name, backend, batch): aim
        for name, aim in benchmark.AIMS.items()
        for backend in benchmark.BACKENDS
        for batch in (1, 8)
    }
    assert found == expected


def test_bound_comes_first(benchmark: ModuleType) -> None:
    """The figures are multiples of the time of torchvision's model."""
    found = benchmark.ratios({"theirs": [2.0, 2.0], "ours": [1.0, 1.0], "float": [6.0, 6.0]})
    assert benchmark.Models._fields[0] == "theirs"
    assert (found["ours"].value, found["float"].value) == (0.5, 3.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # inductor's own, of packed weights
def test_the_compiled_graph_runs_beside_the_others(benchmark: ModuleType) -> None:
    models = benchmark.build("resnet18", "x86", torch.randn(4, 3, 64, 64), compiled=True)
    assert list(benchmark.measure(models, 2, 1)) == ["theirs", "ours", "float", "pt2e"]
