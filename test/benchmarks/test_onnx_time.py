"""The benchmark of int8 ONNX files; the timings are not tested."""

import importlib
import json
import sys
from collections import Counter
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
        yield importlib.import_module("onnx_time")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of onnxruntime about itself
def test_both_files_run_in_int8(benchmark: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    batch = torch.randn(2, 3, 12, 12)
    write = {"theirs": lambda path: benchmark.write_by_onnxruntime(model, [batch], "MinMax", path)}
    write["ours"] = lambda path: benchmark.write_ours(model, batch, path)
    with torch.no_grad():
        expected = model(batch)
    for name, function in write.items():
        path = tmp_path / f"{name}.onnx"
        function(path)
        loaded = benchmark.session(str(path), f"{path}.optimized")
        output = torch.from_numpy(loaded.run(None, {loaded.get_inputs()[0].name: batch.numpy()})[0])
        assert 0 < float((output - expected).abs().max()) < 0.1 * float(expected.abs().max())
        assert Path(f"{path}.optimized").exists()


def test_the_table_names_model_and_target(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figure = benchmark.Ratio(1.02, 1.01, 1.03)
    monkeypatch.setattr(benchmark, "measure", lambda *args: (figure, {"ours": Counter(Conv=2, Relu=1)}))
    threads = torch.get_num_threads()
    argv = ["--only", "tf_efficientnet_lite0", "--operators", "--json", str(tmp_path / "time.json")]
    benchmark.main(argv)
    torch.set_num_threads(threads)
    row, operators = capsys.readouterr().out.splitlines()[-2:]
    assert row.split() == ["efficientnet_lite0", "1.02", "1.05"]
    assert operators.split(maxsplit=1) == ["ours", "2 Conv, 1 Relu"]
    assert json.loads((tmp_path / "time.json").read_text())["rows"][0]["ours"]["ratio"] == 1.02
