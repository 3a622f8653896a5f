"""Every runtime of the whole-model benchmark computes the same as the float model."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # the benchmarks are scripts, not a package
    bench, int8 = importlib.import_module("deploy"), importlib.import_module("quantized")

FAST = ("eager", "channels_last", "folded", "lowered", "int8 eager", "int8 lowered")
CASES = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in bench.RUNTIMES]


@pytest.mark.parametrize("runtime", CASES)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@torch.no_grad()
def test_runtimes_compute_the_same_as_the_model(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "SIZE", 64)
    pair = int8.float_pair("resnet18")
    for model in pair if runtime != "int8 eager" else pair[:1]:  # torchvision has its own quantizable model
        batch = torch.randn(8, 3, 64, 64)
        expected = model(batch)
        noise = (bench.RUNTIMES[runtime](model, batch)(batch) - expected).norm() / expected.norm()
        assert noise < (0.2 if "int8" in runtime or "qdq" in runtime else 1e-5)
        assert model(batch).equal(expected), "the runtime changed the model"


@pytest.mark.slow
def test_the_script_measures_in_separate_processes() -> None:
    command = [sys.executable, str(BENCHMARKS / "deploy.py"), "--only", "resnet18", "--runtimes", "folded", "--alone"]
    result = subprocess.run([*command, "--rounds", "1"], capture_output=True, text=True, check=True)
    ratios = json.loads(result.stdout.splitlines()[-1])
    assert list(ratios) == ["torchvision, eager", "ours", "torchvision"]
    assert ratios["torchvision, eager"][0] == 1
