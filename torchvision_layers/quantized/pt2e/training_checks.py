"""Models that a graph of the PT2E engine cannot train."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.hooked_weights import list_removals_of_changing_norms
from ..._utils.inputs import Inputs
from ..._utils.modules import copy_module

__all__ = ["check_backward", "check_trainable"]


def check_trainable(model: nn.Module, backend: str) -> None:
    """Errors: ``ValueError`` for a backend without training, and for norms that a graph cannot train."""
    if backend == "xnnpack":  # its quantizer looks for batch norms directly after convolutions
        raise ValueError(
            "backend must be x86, litert, onnxruntime or tensorrt to train with this engine, got 'xnnpack', to "
            "calibrate only"
        )
    norms = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    cumulative = [path or "model" for path, norm in norms if norm.momentum is None and norm.running_mean is not None]
    if cumulative:
        raise ValueError(
            f"batch norms must have a number as momentum to be trained with engine='pt2e', {', '.join(cumulative)} "
            f"{'has' if len(cumulative) == 1 else 'have'} None, the average over all batches: set momentum=0.1, or use "
            "engine='eager'"
        )
    removals = list_removals_of_changing_norms(model)
    if removals:
        raise ValueError(
            "weights must be computed from parameters alone to be trained with engine='pt2e', spectral norm also "
            f"changes buffers: to train their present values, first call {', '.join(removals)}"
        )


def check_backward(model: nn.Module, example: Inputs) -> None:
    """Raises ``ValueError`` if a ``torch.autograd.Function`` of the user runs: a graph differentiates its forward."""
    original: Any = vars(torch.autograd.Function)["apply"]
    found = list[type]()

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if not cls.__module__.startswith("torch."):  # checkpoints compute the same gradients
            found.append(cls)
        return original.__func__(cls, *args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)
    try:
        with suppress(Exception):  # the export reports it
            example.map(Tensor.clone).run(copy_module(model))
    finally:
        torch.autograd.Function.apply = original
    if found:
        raise ValueError(
            "model must not call functions with a backward method of their own to be trained with engine='pt2e', whose "
            f"graph does not have it, it calls {found[0].__qualname__} of {found[0].__module__}: use engine='eager'"
        )
