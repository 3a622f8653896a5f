"""The layer benchmark on a GPU, as far as it runs without one: on meta, and with stand-ins for ``torch.cuda``."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from .test_layers import BENCHMARKS, cases, layers, measure

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    devices, throughput = (importlib.import_module(name) for name in ("devices", "throughput"))
CUDA, META = torch.device("cuda", 1), torch.device("meta")


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_candidates_run_on_another_device_in_half_precision(case) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        candidates, input = layers.build(case, torch.channels_last if len(case.shape) == 4 else None, META, dtype)
        for name, candidate in candidates.items():
            output = candidate.module(input)
            for tensor in output if isinstance(output, tuple) else [output]:
                assert (tensor.device, tensor.dtype) == (META, dtype), name
            if candidate.trains:
                gradient, *_ = measure.training_step(candidate.module, input)()
                assert (gradient.device, gradient.dtype) == (META, dtype), name


def test_a_gpu_has_three_modes_and_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "existing", torch.device)
    halves = (torch.float16, torch.bfloat16)
    assert layers.choose_settings("cuda:1", None) == [(CUDA, mode, *halves) for mode in ("eager", "compiled", "graph")]
    assert layers.choose_settings("cpu", None) == [devices.Setting()]
    assert [setting.mode for setting in layers.choose_settings("cpu", ["compiled"])] == ["compiled"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda:63"], "no device 'cuda:63' to measure"),
        (["--device", "meta"], "no device 'meta' to measure"),
        (["--device", "abacus"], "no device 'abacus' to measure"),
        (["--modes", "graph"], "--modes: a graph needs a GPU, such as --device cuda"),
    ],
)
def test_a_device_must_exist(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        layers.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_the_table_of_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    settings = [devices.Setting(META, mode, torch.float16, torch.bfloat16) for mode in ("eager", "compiled")]
    monkeypatch.setattr(layers, "choose_settings", lambda device, modes: settings)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    monkeypatch.setattr(
        layers, "behind", lambda rows, peers: [f"{len(rows)} rows, peers {sorted(peers['LayerNorm2d'])}"]
    )
    monkeypatch.setattr(layers, "clocks", lambda device: "steady")
    before = torch.backends.cudnn.benchmark
    layers.main(["--only", "LayerNorm2d", "--rounds", "1", "--formats", "contiguous"])
    torch.backends.cudnn.benchmark = before
    *_, eager, compiled, empty, after, last = capsys.readouterr().out.splitlines()
    assert eager.startswith("  contiguous, eager")
    assert compiled.startswith("  contiguous, compiled")
    assert (empty, after) == ("", "clocks after: steady")
    assert last == "2 rows, peers ['torchvision']"


def test_layers_behind_a_peer_are_named() -> None:
    def figures(inference: float, training: float | None) -> dict[str, Any]:
        return {"inference": {"ratio": inference}, "training": training and {"ratio": training}}

    candidates = {
        "a bound": figures(1, 1),
        "ours": figures(1.5, 2),
        "timm": figures(1.49, 1.9),
        "x": figures(1.4, None),
    }
    row = {"layer": "L", "shape": [1, 2], "format": "contiguous", "mode": "graph", "candidates": candidates}
    line = "L [1, 2] contiguous graph: {} takes {} of the time of {}"
    assert layers.behind([row], {"L": ["timm"]}) == [line.format("training", "1.05", "timm")]
    assert layers.behind([row], {"L": ["timm", "x"]}) == [
        line.format("inference", "1.07", "x"),
        line.format("training", "1.05", "timm"),
    ]
    assert layers.behind([row], {"L": []}) == []


def test_events_measure_the_time_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: "Event") -> float:
            return 250.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert devices.timer(CUDA)(lambda: log.append("call"), 2) == 0.25
    assert log == ["record", "call", "call", "record", "synchronize"]
    assert devices.timer(torch.device("cpu")) is measure.wall_seconds


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for streams and graphs, and the log of what is replayed."""
    log: list[str] = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: log.append("replay")))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    return log


def test_modes(graphs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: nn.Sequential(module))

    def make(module: nn.Module) -> Callable[[], object]:
        return lambda: graphs.append(type(module).__name__)

    devices.in_mode("eager", nn.ReLU(), make)()
    devices.in_mode("compiled", nn.ReLU(), make)()
    assert graphs == ["ReLU", "Sequential"]
    replay = devices.in_mode("graph", nn.ReLU(), make)
    assert graphs[2:] == ["ReLU"] * 4  # three times to warm up, and the capture
    replay()
    replay()
    assert graphs[6:] == ["replay"] * 2


def test_peak_memory_is_that_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: log.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 140)
    assert devices.peak(lambda: log.append("call"), CUDA) == 40
    assert log == ["call", "synchronize", "reset_peak_memory_stats", "call", "synchronize"]
    x = torch.zeros(1000)
    assert devices.peak(lambda: x + 1, torch.device("cpu")) >= x.nbytes


@pytest.mark.parametrize(
    ("status", "output", "text"),
    [
        (
            0,
            "1980 MHz, 1980 MHz, 2619 MHz, 700.00 W, 41\n",
            "clocks.sm 1980 MHz, clocks.max.sm 1980 MHz, clocks.mem 2619 MHz, power.limit 700.00 W, temperature.gpu 41",
        ),
        (9, "", "unknown, nvidia-smi ended with status 9"),
    ],
)
def test_clocks(monkeypatch: pytest.MonkeyPatch, status: int, output: str, text: str) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> object:
        commands.append(command)
        return SimpleNamespace(returncode=status, stdout=output)

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", run)
    assert devices.clocks(CUDA) == text
    assert commands[0][0] == "nvidia-smi"
    assert commands[0][-1] == "--id=1"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert devices.clocks(CUDA) == "unknown without nvidia-smi"


def test_conditions_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(devices, "clocks", lambda device: "fast")
    conditions = devices.conditions(CUDA)
    assert (conditions["GPU"], conditions["clocks before"]) == ("A GPU", "fast")
    assert devices.conditions(torch.device("cpu")) == {}


def test_images_per_second(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(name: str, device: torch.device) -> dict[str, nn.Module]:
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000)
        return {peer: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *head) for peer in ("ours", "timm")}

    monkeypatch.setattr(throughput, "build", tiny)
    monkeypatch.setattr(
        throughput, "interleave", lambda calls, rounds, timer: {n: [timed(c)] for n, c in calls.items()}
    )
    threads, tuned = torch.get_num_threads(), torch.backends.cudnn.benchmark
    options = [
        "--only",
        "mobilenet_v3_large",
        "--batch-size",
        "2",
        "--image-size",
        "32",
        "--json",
        str(tmp_path / "a.json"),
    ]
    throughput.main(options)
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = tuned
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "mobilenet_v3_large, eager: ours 4 / 4; timm 4 / 4"
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert row["images per second"] == {peer: [4, 4] for peer in ("ours", "timm")}


def timed(call: Callable[[], object]) -> float:
    call()
    return 0.5


@pytest.mark.parametrize("name", throughput.NAMES)
def test_the_models_have_equal_sizes(name: str) -> None:
    sizes = {peer: sum(p.numel() for p in model.parameters()) for peer, model in throughput.build(name, META).items()}
    assert sizes["ours"] == sizes["torchvision"]
    assert sizes.get("timm", sizes["ours"]) == pytest.approx(sizes["ours"], rel=0.01)
