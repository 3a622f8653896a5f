"""The modes in which a check runs, whatever those of the caller are."""

import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["isolated_modes", "tf32"]


@contextmanager
def isolated_modes(device: torch.device) -> Iterator[None]:
    """Float32, gradients on, no autocast, TF32 off; afterwards, modes and random states are those of the caller."""
    dtype, python_state, numpy_state = torch.get_default_dtype(), random.getstate(), np.random.get_state()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            _forked_generators(device),
            torch.inference_mode(False),
            torch.enable_grad(),
            _no_autocast(device),
            _repeatable_convolutions(),
            tf32(False),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _forked_generators(device: torch.device) -> Iterator[None]:
    if device.type in ("cpu", "meta"):
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        with torch.random.fork_rng(devices=[device.index or 0], device_type=device.type):
            yield


@contextmanager
def _no_autocast(device: torch.device) -> Iterator[None]:
    with ExitStack() as stack:
        for kind in dict.fromkeys(("cpu", device.type)):
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _repeatable_convolutions() -> Iterator[None]:
    """cuDNN may otherwise choose algorithms whose gradients differ from call to call."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Whether GPUs may round float32 operands of products and convolutions to 10 bits, which cuDNN does by default."""
    # The newer settings by ``fp32_precision`` do not update these, and torch raises if both kinds disagree.
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API", UserWarning)
        before = cudnn.allow_tf32, matmul.allow_tf32
        cudnn.allow_tf32 = matmul.allow_tf32 = enabled
        try:
            yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32 = before
