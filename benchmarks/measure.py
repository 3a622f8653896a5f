"""Relative time and memory of modules, and the conditions of the measurement.

Seconds depend on the machine and the day, so this file returns only ratios to the time of a baseline, which takes turns
with the other candidates in the same process.
"""

import gc
import importlib.metadata
import os
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

__all__ = [
    "Call",
    "Ratio",
    "Timer",
    "conditions",
    "interleave",
    "peak_bytes",
    "ratios",
    "saved_bytes",
    "training_step",
    "wall_seconds",
]

#: Minimum seconds of a measurement: far above the overhead of the clock and of a call from Python.
AT_LEAST = 0.02

#: Files that are mapped into this process, on Linux.
MAPS = Path("/proc/self/maps")

ALLOCATORS = ("jemalloc", "mimalloc", "tcmalloc")
ALLOCATOR_SETTINGS = (
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_CONF",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)

Call = Callable[[], object]
Clock = Callable[[], float]
#: Seconds that a number of calls in a row take.
Timer = Callable[[Call, int], float]


class Ratio(NamedTuple):
    """Time relative to the baseline."""

    #: Ratio of the medians over all rounds.
    value: float
    #: Quartiles of the ratios of single rounds.
    low: float
    high: float

    def __str__(self) -> str:
        """The value, with ``~`` if the quartiles differ by more than a tenth of it."""
        return f"{'~' if self.high - self.low > self.value / 10 else ''}{self.value:.2f}"


def wall_seconds(call: Call, count: int, clock: Clock = time.perf_counter) -> float:
    start = clock()
    for _ in range(count):
        call()
    return clock() - start


def interleave(
    calls: Mapping[str, Call], rounds: int, *, at_least: float = AT_LEAST, timer: Timer = wall_seconds
) -> dict[str, list[float]]:
    """Seconds per call in each round; in every round each of the calls has its turn.

    This way, other load on the machine slows all of them down. Every other round runs backwards, so that a machine that
    warms up or cools down favours none of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with _no_collection():
        counts = {name: _call_count(call, at_least, timer) for name, call in calls.items()}
        for turn in range(rounds):
            for name in calls if turn % 2 == 0 else reversed(list(calls)):
                seconds[name].append(timer(calls[name], counts[name]) / counts[name])
    return seconds


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, Ratio]:
    """Results of :func:`interleave` relative to the first, the baseline."""
    baseline = next(iter(seconds.values()))
    result = {}
    for name, own in seconds.items():
        rounds = torch.tensor([a / b for a, b in zip(own, baseline, strict=True)], dtype=torch.float64)
        low, high = rounds.quantile(rounds.new_tensor([0.25, 0.75])).tolist()
        result[name] = Ratio(statistics.median(own) / statistics.median(baseline), low, high)
    return result


def training_step(module: nn.Module, input: Tensor) -> Call:
    """Forward pass in training mode, and gradients of the input and all parameters."""
    module.train()
    input = input.detach().requires_grad_()
    inputs = [input, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
    gradients = [torch.randn_like(output) for output in _outputs(module, input.detach())]
    return lambda: torch.autograd.grad(_outputs(module, input), inputs, gradients)


def saved_bytes(module: nn.Module, input: Tensor) -> int:
    """Memory that a forward pass in training mode keeps for its backward pass, without parameters and buffers.

    A storage counts once and in full, however many tensors share it.
    """
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        entry = _Saved(tensor.detach())  # an output and its graph would keep each other alive
        saved.add(entry)
        return entry

    module.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda entry: entry.tensor):
        outputs = _outputs(module, input.detach().requires_grad_())
    # The outputs keep their graph alive; the weak set has lost the tensors that the graph has dropped.
    storages = [entry.tensor.untyped_storage() for entry in saved]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del outputs
    owned = {tensor.untyped_storage().data_ptr() for tensor in chain(module.parameters(), module.buffers())}
    return sum(size for address, size in sizes.items() if address not in owned)


def peak_bytes(call: Call) -> int:
    """The most memory of torch's CPU allocator that a call holds at once, with its result, beyond what existed before.

    Kernels allocate their scratch memory there as well; other runtimes do not. Unlike the resident set of a process,
    the count is the same in every run.
    """
    call()  # packs weights and fills caches
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(changes, initial=0))


def conditions() -> dict[str, str]:
    """Conditions that affect the figures: versions, threads, instruction set, allocator and its settings."""
    settings = [f"{name}={os.environ[name]}" for name in ALLOCATOR_SETTINGS if name in os.environ]
    return {
        "torch": str(torch.__version__),  # includes the build variant
        **{name: _version(name) for name in ("torchvision", "timm")},
        "threads": str(torch.get_num_threads()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "allocator": " ".join([allocator(), *settings]),
    }


def allocator(maps: Path = MAPS) -> str:
    """The memory allocator of this process, judging by the files that are mapped into it."""
    try:
        mapped = {Path(line.split(maxsplit=5)[-1]).name for line in maps.read_text(errors="replace").splitlines()}
    except OSError:
        mapped = set()
    libraries = sorted(file for file in mapped if any(name in file for name in ALLOCATORS))
    return ", ".join(libraries) or f"the C library's ({' '.join(platform.libc_ver()).strip() or platform.system()})"


class _Saved:
    """Holder of a saved tensor; only autograd refers to it, unlike the tensor itself."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _outputs(module: nn.Module, input: Tensor) -> tuple[Tensor, ...]:
    outputs = module(input)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _call_count(call: Call, at_least: float, timer: Timer) -> int:
    """Number of calls that take ``at_least`` seconds; also warms them up."""
    call()
    count = 1
    while timer(call, count) < at_least:
        count *= 2
    return count


@contextmanager
def _no_collection() -> Iterator[None]:
    """Context without garbage collection, which would charge one candidate for the garbage of another."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
