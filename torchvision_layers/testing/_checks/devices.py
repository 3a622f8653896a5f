"""Checks of devices: nothing is created elsewhere or read back, and what only GPUs have: TF32, streams, graphs."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import _modes
from .._case import Case, run_seeded
from .._check import check
from ._not_applicable import GPU_ONLY, RANDOM_IN_TRAINING, TRAIN_EVAL, WAITS_IN_TRAINING
from .inputs import relative_l2

__all__ = ["cuda_graph", "no_sync", "other_device", "tf32"]


class _OneDevice(TorchDispatchMode):
    """Raises if an operation returns a tensor on another device. Scalars may be on the CPU: kernels read them there."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.dim() > 0 and tensor.device.type != self._device:
                raise AssertionError(f"{func} makes a tensor on {tensor.device} for an input on {self._device}")
        return result


def _run_on_fake_gpu(layer: nn.Module, input: Tensor) -> Tensor:
    """Run on a GPU that has shapes and devices, but no values. Without a real GPU, torch runs the forward pass only."""
    with FakeTensorMode() as mode, torch.no_grad():
        state = {
            name: mode.from_tensor(tensor).detach().to("cuda")
            for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
        }
        fake_input = mode.from_tensor(input).to("cuda")
        with _OneDevice("cuda"):
            return torch.func.functional_call(layer, state, (fake_input,))


class _ReadsValues(TorchDispatchMode):
    """Records whether an operation needs values: one that returns a number, or whose output's shape depends on them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(func.tags)
        return func(*args, **(kwargs or {}))


@check("other_device", variants=TRAIN_EVAL)
def other_device(case: Case) -> None:
    """On a fake GPU, and with gradients on meta, every tensor is on the device of the input.

    No value is read back, which would wait for a GPU, unless the sample declares ``waits``.
    """
    layer, input = case.layer().to("cpu"), case.input().to("cpu")
    if case.training and case.sample.waits:
        with _ReadsValues() as reads:
            layer(input)
        assert reads.seen, "waits=True, but forward reads no value in training"
        return
    assert _run_on_fake_gpu(layer, input).device.type == "cuda", "the output is not on the GPU"
    layer, input = layer.to("meta"), input.to("meta").requires_grad_()
    with _OneDevice("meta"):
        output = layer(input)
        output.backward(torch.empty_like(output))
    assert input.grad is not None, "no gradient reaches the input"


@check("tf32", variants=TRAIN_EVAL, not_applicable=(GPU_ONLY, RANDOM_IN_TRAINING))
def tf32(case: Case) -> None:
    """With TF32, which keeps 10 bits of operands, float32 outputs are close to float64."""
    layer, input = case.layer(), case.input()
    expected = run_seeded(copy.deepcopy(layer).double(), input.double())
    with _modes.tf32(True):
        distance = relative_l2(run_seeded(layer, input), expected)
    assert distance <= 2e-3, f"relative distance {distance:.1e}"


@contextmanager
def _no_waiting() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@check("no_sync", variants=TRAIN_EVAL, not_applicable=(GPU_ONLY, WAITS_IN_TRAINING))
def no_sync(case: Case) -> None:
    """The CPU never waits for the GPU, in the forward and in the backward pass."""
    layer, input = case.layer(), case.input().requires_grad_()
    output = run_seeded(layer, input)  # libraries may wait in their first call
    gradient = torch.ones_like(output)
    output.backward(gradient)
    torch.cuda.synchronize(case.device)
    with _no_waiting():
        layer(input).backward(gradient)


def captured(call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Capture a call in a CUDA graph. Returns its output, and a function that computes it again."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries must not initialize themselves during the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return output, graph.replay


@check("cuda_graph", variants=TRAIN_EVAL, not_applicable=(GPU_ONLY, RANDOM_IN_TRAINING, WAITS_IN_TRAINING))
def cuda_graph(case: Case) -> None:
    """A forward pass captured in a CUDA graph equals eager calls for new inputs."""
    layer, input = case.layer(), case.input()
    eager = copy.deepcopy(layer)
    with torch.no_grad():
        output, replay = captured(lambda: layer(input))
        for _ in range(2):
            input.copy_(case.input())
            replay()
            torch.testing.assert_close(output, eager(input), rtol=1e-5, atol=1e-5)
