"""The precision in which models are quantized, and in which prepared and int8 models run."""

from contextlib import AbstractContextManager, ExitStack

import torch
from torch import nn

from .._utils.inputs import Inputs
from .._utils.structure import flatten

__all__ = ["check_no_autocasting", "in_float32"]

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


@torch.no_grad()
def check_no_autocasting(model: nn.Module, inputs: Inputs) -> None:
    """Errors: ``ValueError`` if a ``forward`` turns autocasting on for a layer."""
    paths = {m: path for path, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None}

    def check(module: nn.Module, args: object, output: object) -> None:
        if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in flatten(output)[0]):
            raise ValueError(
                "model must not turn autocasting on in a forward to be trained with engine='eager', "
                f"{paths[module] or 'it'} runs within torch.autocast: remove that, prepared models run in float32"
            )

    handles = [module.register_forward_hook(check) for module in paths]
    try:
        inputs.run(model)
    finally:
        for handle in handles:
            handle.remove()
