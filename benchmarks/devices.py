"""Devices of the layer benchmark: how to time, run, and measure the memory of a call on a CPU or a GPU."""

import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from measure import Call, Timer, peak_bytes, wall_seconds
from torch import nn

__all__ = ["MODES", "Setting", "captured", "clocks", "conditions", "existing", "in_mode", "peak", "timer"]

#: How a call runs. A graph is a CUDA graph, whose replay has no work for Python.
MODES = ("eager", "compiled", "graph")

#: Properties that ``nvidia-smi`` reads. They say whether the GPU kept its clock, and which limits it had.
_CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")


class Setting(NamedTuple):
    """The device of a measurement, how calls run, and the dtypes of layers and inputs."""

    device: torch.device = torch.device("cpu")
    mode: str = "eager"
    inference_dtype: torch.dtype = torch.float32
    training_dtype: torch.dtype = torch.float32


def existing(name: str) -> torch.device:
    """The device with this name. Raises ``ValueError`` if there is none to measure."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:  # torch raises any of them
        raise ValueError(f"no device {name!r} to measure ({str(error).splitlines()[0]})") from error
    return device


def timer(device: torch.device) -> Timer:
    """Measures the seconds of some calls in a row: by the clock on a CPU, by events in the stream of a GPU."""
    return event_seconds if device.type == "cuda" else wall_seconds


def event_seconds(call: Call, count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def in_mode(mode: str, module: nn.Module, make_call: Callable[[nn.Module], Call]) -> Call:
    """The call that ``make_call`` makes of a module, in one of :data:`MODES`."""
    if mode == "compiled":
        return make_call(torch.compile(module, dynamic=False))
    call = make_call(module)
    return captured(call) if mode == "graph" else call


def captured(call: Call) -> Call:
    """Replays a call from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries must not initialize themselves during the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return partial(_replay, graph, output)


def _replay(graph: torch.cuda.CUDAGraph, output: object) -> object:
    graph.replay()
    return output  # which keeps the memory that the graph writes to


def peak(call: Call, device: torch.device) -> int:
    """The most memory of torch's allocator that a call holds at once, beyond what existed before."""
    if device.type != "cuda":
        return peak_bytes(call)
    call()  # fills caches
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def conditions(device: torch.device) -> dict[str, str]:
    """Conditions on a GPU that affect the figures; none on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "GPU": torch.cuda.get_device_name(device),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "clocks before": clocks(device),
    }


def clocks(device: torch.device) -> str:
    """Clocks, power limit and temperature now, from ``nvidia-smi``."""
    if shutil.which("nvidia-smi") is None:
        return "unknown without nvidia-smi"
    query = [f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader", f"--id={device.index or 0}"]
    result = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=False)
    values = result.stdout.strip().split(", ")
    if result.returncode or len(values) != len(_CLOCKS):
        return f"unknown, nvidia-smi ended with status {result.returncode}"
    return ", ".join(f"{name} {value}" for name, value in zip(_CLOCKS, values, strict=True))
