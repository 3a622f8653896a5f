"""The functions of the eager engine: quantize, or prepare, freeze and convert."""

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..._utils.tracing import CONCATENATION_OPS
from ..checks import check_float32_parameters, check_same_results
from ..wrapper import Stage
from .bias_correction import correct_biases
from .flat_sequential import flatten_sequentials
from .fusion import fuse_children
from .model import QuantizableModel, quantizable
from .post_ops import find_post_ops, select_worthwhile
from .torch_ao import converting, preparing
from .torch_ao.fusing import is_fused_for_training

__all__ = ["check_backend", "convert", "freeze", "prepare_qat", "quantize"]

_BACKENDS = ("x86", "onednn", "qnnpack")

_FUSING_CHANGED_RESULTS = (
    "fusing changed the results: a forward that cannot be traced calls only parts of a layer or of a Sequential; call "
    "them as wholes"
)


def check_backend(backend: str) -> None:
    """Raises ``ValueError`` unless torch has the backend on this machine."""
    supported = [name for name in _BACKENDS if name in torch.backends.quantized.supported_engines]
    if backend not in supported:
        raise ValueError(f"backend must be one of {', '.join(supported)} on this machine, got {backend!r}")


def quantize(model: nn.Module, batches: Iterator[Tensor], backend: str, allow_float: bool) -> QuantizableModel:
    """An int8 copy of ``model``, with ranges observed and biases corrected on ``batches``."""
    prepared = _float_copy(model, allow_float).eval()
    if is_fused_for_training(prepared):
        raise ValueError("model is fused for training; fuse it in eval mode, or leave that to quantize")
    unfused = copy.deepcopy(prepared)
    fuse_children(prepared, is_qat=False)
    first = next(batches, None)
    if first is None:
        raise ValueError("batches must hold at least one batch, got none")
    with torch.no_grad():
        check_same_results(prepared(first), unfused(first), _FUSING_CHANGED_RESULTS)
        if backend == "onednn":
            prepared.post_ops = select_worthwhile(prepared, find_post_ops(prepared), first)
        preparing.prepare(prepared, backend, prepared.post_ops, is_qat=False)
        prepared.stage, prepared.backend = Stage.PREPARED, backend
        with correct_biases(prepared):
            for batch in chain([first], batches):
                prepared(batch)
    return _convert_(prepared)


def prepare_qat(model: nn.Module, example: Tensor | None, backend: str, allow_float: bool) -> QuantizableModel:
    """A copy of ``model`` that is fused, in training mode, with fake quantization."""
    prepared = _float_copy(model, allow_float).train()
    if example is not None:
        prepared.image_shape = tuple(example.shape[1:])
    fuse_children(prepared, is_qat=True)
    if backend == "onednn":
        prepared.post_ops = find_post_ops(prepared)
    preparing.prepare(prepared, backend, prepared.post_ops, is_qat=True)
    prepared.stage, prepared.backend = Stage.PREPARED, backend
    return prepared


def convert(prepared: QuantizableModel) -> QuantizableModel:
    """An int8 copy of a prepared model, on the CPU and in eval mode."""
    return _convert_(copy.deepcopy(prepared))


def freeze(prepared: QuantizableModel) -> None:
    """Stops batch statistics and observers of a prepared model, in place and for good."""
    if preparing.unobserved_paths(prepared):
        raise ValueError("model must have run on batches, or have loaded a state, before its ranges are frozen")
    prepared.is_frozen = True
    preparing.freeze(prepared)


def _float_copy(model: nn.Module, allow_float: bool) -> QuantizableModel:
    clone = quantizable(model, allow_float=allow_float)
    if clone.stage is not Stage.FLOAT:
        raise ValueError("model is prepared or converted already; start from the float model")
    check_float32_parameters(clone.model)
    return clone


def _convert_(model: QuantizableModel) -> QuantizableModel:
    """Converts ``model`` in place and tries it on zeros."""
    unreached_paths = [path.removeprefix("model.") for path in preparing.unobserved_paths(model)]
    if unreached_paths:
        raise ValueError(f"batches must reach every module, no calibration batch reached {', '.join(unreached_paths)}")
    model.cpu().eval()
    converting.convert(model, model.backend, model.post_ops)
    if model.backend != "qnnpack":  # its kernels accept any input: there the layers must check
        flatten_sequentials(model, converting.FLAT_KERNELS)
    model.stage = Stage.INT8
    if not model.image_shape:  # no batch ran since it was prepared: its state was loaded
        return model
    try:
        with torch.no_grad(), _NoConcatenation():
            # oneDNN caches the kernel for the first size that it meets, so the trial runs on a copy.
            trial = model if model.backend == "qnnpack" else copy.deepcopy(model)
            trial(torch.zeros((1, *model.image_shape)))
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"the int8 model cannot run: {error}\nIf the operation is in a forward that you wrote, move it into a "
            "module of its own and pass allow_float=True, or use a layer of torchvision_layers."
        ) from error
    return model


class _NoConcatenation(TorchFunctionMode):
    """Rejects concatenations of int8 tensors that tracing did not find."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in CONCATENATION_OPS and any(tensor.is_quantized for tensor in args[0]):
            raise TypeError("it concatenates int8 tensors, which would take the scale of the first")
        return func(*args, **(kwargs or {}))
