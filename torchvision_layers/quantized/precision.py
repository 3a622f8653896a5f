"""The precision in which models are quantized, and in which prepared and int8 models run."""

from contextlib import AbstractContextManager, ExitStack

import torch

__all__ = ["in_float32"]

_DEVICES = ("cpu", "cuda", "mps", "xpu")


def in_float32() -> AbstractContextManager[object]:
    """Turns autocast off.

    Observers and fake quantization need float32: bfloat16 and the steps of eight bits are equally coarse at the end of
    a range. Kernels that make int8 tensors take nothing else.
    """
    stack = ExitStack()
    for device in _DEVICES:
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack
