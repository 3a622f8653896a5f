"""The benchmark of accuracy: its figures, its separate processes, the record that it continues, and its page."""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # the benchmarks are scripts, not a package
    bench, quantizers, int8 = map(importlib.import_module, ("accuracy", "quantizers", "quantized"))
    figures = importlib.import_module("figures")  # in docs

FAST = ("eager onednn", "eager x86", "FX x86")
CASES = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
    for name in quantizers.QUANTIZERS
    if name not in quantizers.NNCF
]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Compiling torchao's graph freezes weights from then on."""
    is_freezing = torch._inductor.config.freezing
    yield
    torch._inductor.config.freezing = is_freezing


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")  # of torch, torchao and onnxruntime by themselves
@torch.no_grad()
def test_each_tool_quantizes(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
    batches = torch.randn(4, 2, 3, 12, 12).unbind()
    expected = net(batches[0])
    with int8.running_on("x86" if "x86" in name else "onednn"):
        result = quantizers.QUANTIZERS[name](net, batches)
        assert 20 < bench.compare(expected, result.call(batches[0]))["decibels"] < 100  # 200 means equal
    assert 500 < result.size < 20_000
    assert net(batches[0]).equal(expected), "the tool changed the model"


def test_figures() -> None:
    """Against the definitions, in plain Python."""
    expected = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    actual = torch.tensor([[1.0, 0.0], [0.5, 0.0], [3.0, 0.0]])
    result = bench.compare(expected, actual)
    assert result["decibels"] == pytest.approx(10 * math.log10(14 / 4.25))
    assert result["agreement"] == pytest.approx(2 / 3)
    p, q = ([math.exp(a) / (math.exp(a) + math.exp(b)) for a, b in ((x, y), (y, x))] for x, y in ((0, 2), (0.5, 0)))
    assert result["divergence"] == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3)
    assert bench.compare(expected, expected)["decibels"] == pytest.approx(200)
    with pytest.raises(ValueError, match=r"must have shape \[3, 2\], got \[1, 2\]"):
        bench.compare(expected, actual[:1])
    with pytest.raises(ValueError, match="must be finite"):
        bench.compare(expected, actual / 0)


def test_nncf_runs_in_its_own_environment(tmp_path: Path) -> None:
    assert bench.interpreter("eager x86", tmp_path) == Path(sys.executable)
    with pytest.raises(FileNotFoundError, match=r"needs \.venv-nncf, which make bench-accuracy makes"):
        bench.interpreter("NNCF", tmp_path)
    python = tmp_path / ".venv-nncf" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert bench.interpreter("NNCF", tmp_path) == python


FIGURES = {
    "decibels": 24.51,
    "agreement": 0.98,
    "divergence": 0.0123,
    "megabytes": 5.0,
    "seconds": 9.8,
    "time": {"ratio": 0.3, "quartiles": [0.29, 0.31]},
}


def test_a_run_continues(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cells that failed, or were measured under other conditions, are run again; each is written as it comes."""
    seen = []

    class Result:
        def __init__(self, command: list[str], **options: Any) -> None:
            quantizer = command[5]
            seen.append(quantizer)
            self.returncode = int(quantizer == "torchao")
            self.stdout, self.stderr = f"noise\n{json.dumps(FIGURES)}\n", "Traceback\nRuntimeError: no `kernel`\n"

    monkeypatch.setattr(bench.subprocess, "run", Result)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "conditions", lambda threads, rounds: {"torch": "2", "threads": threads})
    path = tmp_path / "accuracy.json"
    argv = ["--json", str(path), "--quantizers", "torchao", "eager x86"]
    bench.main(argv)
    printed = capsys.readouterr().out
    assert "eager x86: 24.51 dB, agreement 98.0%, divergence 0.0123, 5.0 MB, time 0.30, 10 s" in printed
    assert "torchao: – RuntimeError: no `kernel`" in printed
    bench.main(argv)
    assert seen == ["torchao", "eager x86", "torchao"]
    bench.main([*argv, "--threads", "2"])
    assert seen[3:] == ["torchao", "eager x86"]
    record = json.loads(path.read_text(encoding="utf-8"))
    assert list(record["efficientnet_lite0"]) == ["eager x86", "torchao"]
    page = figures.accuracy(record)
    cells = ("**eager x86**", "24.5", "98.0%", "0.0123", "5.0", "0.30", "10")
    assert "\n".join(f"   {' ' if i else '*'} - {cell}" for i, cell in enumerate(cells)) in page
    assert "* no figures of torchao: ``RuntimeError: no 'kernel'``" in page
    assert "* efficientnet_lite0: torch: 2; threads: 2" in page


def test_a_tool_may_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> None:
        raise bench.subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(bench.subprocess, "run", run)
    cell = bench.measure_in_subprocess("efficientnet_lite0", "torchao", 1, 1, 5.0)
    assert cell == {"reason": "took more than 5 seconds"}
