"""Time and memory of modules beside each other, and the conditions under which they were found.

Seconds belong to one machine on one day, so none leave this file: what is given back is time as a multiple of that of a
bound, which ran in the same process and in turns with the rest.
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
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Ratio", "conditions", "inference_ratios", "interleave", "ratios", "saved_bytes", "training_ratios"]

#: Seconds that a measurement takes, or more: far above what the clock and a call from Python cost.
AT_LEAST = 0.02

#: Lists the files that are mapped into this process, on Linux.
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


class Ratio(NamedTuple):
    """Time as a multiple of the bound's."""

    #: Of the medians over all rounds.
    value: float
    #: Quartiles of the multiples that single rounds gave.
    low: float
    high: float

    def __str__(self) -> str:
        """With ``~`` where the quartiles lie further apart than a tenth of it."""
        return f"{'~' if self.high - self.low > self.value / 10 else ''}{self.value:.2f}"


def interleave(
    calls: Mapping[str, Call], rounds: int, *, at_least: float = AT_LEAST, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds that one call takes, for each round; in a round each of the calls has its turn.

    Whatever else the machine does slows all of them down. Every other round runs backwards, so that one that warms up
    or cools down favours none.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with _no_collection():
        counts = {name: _enough(call, at_least, clock) for name, call in calls.items()}
        for turn in range(rounds):
            for name in calls if turn % 2 == 0 else reversed(list(calls)):
                seconds[name].append(_seconds(calls[name], counts[name], clock) / counts[name])
    return seconds


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, Ratio]:
    """What :func:`interleave` gives, as multiples of the first, which is the bound."""
    bound = next(iter(seconds.values()))
    found = {}
    for name, own in seconds.items():
        rounds = torch.tensor([a / b for a, b in zip(own, bound, strict=True)], dtype=torch.float64)
        low, high = rounds.quantile(rounds.new_tensor([0.25, 0.75])).tolist()
        found[name] = Ratio(statistics.median(own) / statistics.median(bound), low, high)
    return found


def inference_ratios(modules: Mapping[str, nn.Module], input: Tensor, rounds: int) -> dict[str, Ratio]:
    """Time of the modules in eval mode without autograd; the first is the bound."""
    calls = {name: partial(module.eval(), input) for name, module in modules.items()}
    with torch.inference_mode():
        return ratios(interleave(calls, rounds))


def training_ratios(modules: Mapping[str, nn.Module], input: Tensor, rounds: int) -> dict[str, Ratio]:
    """Time of forward and backward, to the input and all parameters; the first of the modules is the bound."""
    calls = {name: training_step(module, input) for name, module in modules.items()}
    return ratios(interleave(calls, rounds))


def training_step(module: nn.Module, input: Tensor) -> Call:
    """Forward in training mode, and the gradients of the input and of all parameters."""
    module.train()
    input = input.detach().requires_grad_()
    wanted = [input, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
    gradients = [torch.randn_like(output) for output in _outputs(module, input.detach())]
    return lambda: torch.autograd.grad(_outputs(module, input), wanted, gradients)


def saved_bytes(module: nn.Module, input: Tensor) -> int:
    """What a forward in training mode leaves in memory for its backward, without what the module holds anyway.

    A storage counts in full, and once, however many tensors lie in it.
    """
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        held = _Saved(tensor.detach())  # an output would hold its own graph, and the graph the output
        saved.add(held)
        return held

    module.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        outputs = _outputs(module, input.detach().requires_grad_())
    # While the outputs live, so does their graph; what it has dropped by now is gone from the set.
    storages = [held.tensor.untyped_storage() for held in saved]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del outputs
    owned = {tensor.untyped_storage().data_ptr() for tensor in chain(module.parameters(), module.buffers())}
    return sum(size for address, size in sizes.items() if address not in owned)


def conditions() -> dict[str, str]:
    """What the figures depend on besides the layers: versions, threads, instructions, allocator and its settings."""
    settings = [f"{name}={os.environ[name]}" for name in ALLOCATOR_SETTINGS if name in os.environ]
    return {
        "torch": str(torch.__version__),  # with what it was built for
        **{name: _version(name) for name in ("torchvision", "timm")},
        "threads": str(torch.get_num_threads()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "allocator": " ".join([allocator(), *settings]),
    }


def allocator(maps: Path = MAPS) -> str:
    """Whose ``malloc`` this process uses, as far as the files that are mapped into it show."""
    try:
        mapped = {Path(line.split(maxsplit=5)[-1]).name for line in maps.read_text(errors="replace").splitlines()}
    except OSError:
        mapped = set()
    found = sorted(file for file in mapped if any(name in file for name in ALLOCATORS))
    return ", ".join(found) or f"the C library's ({' '.join(platform.libc_ver()).strip() or platform.system()})"


class _Saved:
    """A tensor in the place where autograd keeps it; unlike the tensor itself, nothing else refers to it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _outputs(module: nn.Module, input: Tensor) -> tuple[Tensor, ...]:
    outputs = module(input)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _enough(call: Call, at_least: float, clock: Clock) -> int:
    """So many calls that they take ``at_least`` seconds; they are warm then."""
    call()
    count = 1
    while _seconds(call, count, clock) < at_least:
        count *= 2
    return count


def _seconds(call: Call, count: int, clock: Clock) -> float:
    start = clock()
    for _ in range(count):
        call()
    return clock() - start


@contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage of one is not swept up in the time of another."""
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
