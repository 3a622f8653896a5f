"""Every runtime of the whole-model benchmark computes the same as the float model, and its figures reach the page."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # the benchmarks are scripts, not a package
    bench, runtimes, int8 = map(importlib.import_module, ("deploy", "runtimes", "quantized"))
    figures = importlib.import_module("figures")  # in docs

FAST = ("eager", "channels_last", "folded", "lowered", "lowered bfloat16", "int8 eager", "int8 lowered")
CASES = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in runtimes.RUNTIMES]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench, int8):
        monkeypatch.setattr(module, "SIZE", 64)


@pytest.mark.parametrize("runtime", CASES)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_runtimes_compute_the_same_as_the_model(runtime: str) -> None:
    model, _ = int8.float_pair("resnet18", rewritten=True)
    batch = torch.randn(8, 3, 64, 64)
    expected = model(batch)
    noise = (runtimes.RUNTIMES[runtime](model, batch)(batch) - expected).norm() / expected.norm()
    assert noise < (0.2 if "int8" in runtime or "qdq" in runtime else 0.05 if "bfloat16" in runtime else 1e-5)
    assert model(batch).equal(expected), "the runtime changed the model"


@pytest.mark.usefixtures("small")
def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each case; a case that the runtime cannot run has a reason instead of figures."""

    def build(model: Any, batch: torch.Tensor) -> Any:
        def run(x: torch.Tensor) -> torch.Tensor:
            if len(x) == 3:
                raise ValueError("takes 3\nimages must be 2")
            return model(model(x)[:, :3, None, None].expand(-1, -1, 64, 64))

        return run

    monkeypatch.setitem(runtimes.RUNTIMES, "twice", build)
    monkeypatch.setattr(bench, "COUNTED", ["twice"])
    one, two, three = bench.measure("resnet18", "twice", [bench.Case(n, 64) for n in (1, 2, 3)], 2)
    assert (one["model"], one["runtime"], one["images"], one["size"]) == ("resnet18", "twice", 1, 64)
    assert min(one["time"]["ratio"], two["growth"]) > 0
    assert 1 <= one["memory"] < 1.5
    assert (one["growth"], three["reason"]) == (1.0, "images must be 2")
    assert bench.cell(three) == "–"
    assert bench.cell(one).endswith(f" / {one['memory']:.2f} / 1.00")


def row(**figures: Any) -> dict[str, Any]:
    time = {"ratio": 0.5, "quartiles": [0.49, 0.51]}
    return {"threads": 1, "images": 1, "size": 64, "time": time, "memory": 0.25, "growth": 1.0, **figures}


def test_the_script_measures_in_separate_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []

    class Result:
        def __init__(self, command: list[str], **options: Any) -> None:
            commands.append(command)
            about = {"model": command[3], "runtime": command[5]}
            self.returncode = int(command[5] == "onnx")
            self.stdout = json.dumps([row(**about), row(**about, images=8, memory=None, growth=6.5)])
            self.stderr = "Traceback\n  ...\nRuntimeError: no such file\n"

    monkeypatch.setattr(bench.subprocess, "run", Result)
    path = tmp_path / "figures.json"
    models = ["resnet18", "vit_b_32"]
    bench.main(["--only", *models, "--runtimes", "lowered", "onnx", "--threads", "1", "--json", str(path)])
    assert [command[3:6:2] for command in commands] == [[m, r] for m in models for r in ("lowered", "onnx")]
    assert commands[0][-2:] == ["1,224", "8,224"]
    printed = capsys.readouterr().out
    assert "0.50 / 0.25 / 1.00" in printed
    assert "0.50 / – / 6.50" in printed
    assert "RuntimeError: no such file" in printed
    report = json.loads(path.read_text(encoding="utf-8"))
    assert len(report["rows"]) == 8
    page = figures.runtimes(report)
    assert "Images: 8 of 64 × 64, threads: 1" in page
    assert "   * - lowered\n     - | 0.50\n       | 0.25\n       | 1.00\n" in page
    assert "   * - onnx\n     - –\n     - –\n" in page


def test_growth_leaves_out_sizes_that_a_model_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(
        bench, "measure_in_subprocess", lambda name, runtime, threads, cases, rounds: seen.update({name: cases}) or []
    )
    bench.main(["--growth", "--only", "resnet18", "vit_b_32", "--runtimes", "lowered", "--threads", "1"])
    assert {case.images for case in seen["resnet18"]} == {1, 2, 4, 8, 16, 32}
    assert {case.size for case in seen["resnet18"]} == {96, 160, 224, 288, 384}
    assert {case.size for case in seen["vit_b_32"]} == {224}
