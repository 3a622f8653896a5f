"""From a float model to int8: fuse, calibrate or train, convert."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._bias_correction import correcting_biases
from ._chains import JOINS
from ._checking import check_float32, check_module, check_same_results
from ._engines import eager
from ._fusing import fuse_children
from ._graph_workflow import convert_graph, freeze_graph, prepare_graph, quantize_graph
from ._twin import QuantizableLayer
from .graph import QuantizableGraph
from .model import QuantizableModel, quantizable

__all__ = ["convert", "freeze", "fuse_model", "prepare_qat", "quantize"]

_PARTS = (
    "fusing changed the results: a forward that cannot be traced calls only parts of a layer or of a Sequential; call "
    "them as wholes"
)


def fuse_model(model: nn.Module, is_qat: bool | None = None) -> None:
    """Fuses every convolution or projection with the batch norm and the ReLU or ReLU6 that follow it, in place.

    Layers of ours fuse themselves; in the rest of the model the chains are found by tracing each ``forward``. A second
    call changes nothing. Nothing is fused across a child that has no part in it, or that carries hooks, nor in a child
    of which a ``forward`` calls only a part. A ``forward`` that cannot be traced is taken to call its children as
    wholes; :func:`quantize` compares results.

    Args:
        model: any model.
        is_qat: ``True`` fuses for quantization-aware training, which keeps the batch norms; ``False`` folds them into
            the weights and needs eval mode, results stay equal to 1e-5; ``None`` follows ``model.training``.

    Errors: ``ValueError`` for ``is_qat=False`` in training mode or for modes that differ within a chain.
    """
    check_module(model)
    if isinstance(model, QuantizableLayer):
        model.fuse_model(is_qat)
        return
    fuse_children(model, model.training if is_qat is None else is_qat)


def quantize(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    backend: str = "x86",
    engine: str = "eager",
    allow_float: bool = False,
) -> QuantizableModel | QuantizableGraph:
    """Post-training quantization: an int8 copy of ``model``, its ranges observed on ``batches``.

    In eager, biases make up for what rounding the weights adds to the mean of each channel on ``batches``.

    Args:
        model: float or :func:`quantizable`, fused or not; it is left as it is.
        batches: inputs, or sequences such as ``(input, target)`` whose first item is the input.
        backend: kernels to quantize for. ``"x86"`` is right on every x86 CPU. Eager also has ``"onednn"``, more
            accurate and faster where the CPU has VNNI, and ``"qnnpack"`` for ARM. PT2E has ``"onnxruntime"``, whose
            additions and outputs are int8 too, to export, and ``"xnnpack"`` where executorch is installed.
            Default: ``"x86"``.
        engine: ``"eager"``, modules of torch that hold int8 weights, ready to run and to script; or ``"pt2e"``, a graph
            of torchao, to compile and to export. Default: ``"eager"``.
        allow_float: leaves in float what the engine is not known to run in int8, instead of raising. Default:
            ``False``.

    Errors: ``ValueError`` for an unknown backend or engine, no batches, a batch that is empty or not finite, outputs
    that are not finite, or a module that no batch runs through; ``TypeError`` for what would stay in float, as
    :func:`quantizable`, and for parameters that are not float32; ``RuntimeError`` where fusing or exporting changed the
    results, or the int8 model cannot run; ``ImportError`` where the engine is not installed.
    """
    _check_engine(engine)
    if engine == "pt2e":
        return quantize_graph(model, _inputs(batches), backend, allow_float)
    _check_backend(backend)
    prepared = _float_copy(model, allow_float).eval()
    if eager().is_fused_for_training(prepared):
        raise ValueError("model is fused for training; fuse it in eval mode, or leave that to quantize")
    before = copy.deepcopy(prepared)
    fuse_model(prepared, is_qat=False)
    inputs = _inputs(batches)
    first = next(inputs, None)
    if first is None:
        raise ValueError("batches must hold at least one batch, got none")
    with torch.no_grad():
        check_same_results(prepared(first), before(first), _PARTS)
        prepared.post_ops = eager().prepare(prepared, backend, is_qat=False, example=first)
        prepared.prepared_for = backend
        with correcting_biases(prepared):
            for batch in chain([first], inputs):
                prepared(batch)
    return _converted(prepared)


def prepare_qat(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    backend: str = "x86",
    engine: str = "eager",
    allow_float: bool = False,
) -> QuantizableModel | QuantizableGraph:
    """A copy of ``model`` for quantization-aware training: fused, in training mode, with fake quantization.

    Train it as any model, :func:`freeze` it for the last epochs, then :func:`convert` it.

    Args:
        model: as in :func:`quantize`.
        example: a batch such as it will be trained on. ``engine="pt2e"`` needs one, to export the model; eager takes
            its shape to try the int8 model with. Default: ``None``.
        backend: as in :func:`quantize`.
        engine: as in :func:`quantize`.
        allow_float: as in :func:`quantize`.

    Errors: ``ValueError`` for an unknown backend or engine, no example where one is needed, or a model that is prepared
    already; ``TypeError`` for what would stay in float, as :func:`quantizable`, and for parameters that are not
    float32; ``ImportError`` where the engine is not installed.
    """
    _check_engine(engine)
    if example is not None:
        (example,) = _inputs([example])
    if engine == "pt2e":
        if example is None:
            raise ValueError("example must be a batch such as the model is trained on for engine='pt2e', got None")
        return prepare_graph(model, example, backend, allow_float)
    _check_backend(backend)
    prepared = _float_copy(model, allow_float).train()
    if example is not None:
        prepared.image_shape = tuple(example.shape[1:])
    fuse_model(prepared, is_qat=True)
    prepared.post_ops = eager().prepare(prepared, backend, is_qat=True)
    prepared.prepared_for = backend
    return prepared


def convert(model: QuantizableModel | QuantizableGraph) -> QuantizableModel | QuantizableGraph:
    """An int8 copy, on the CPU and in eval mode, of a model that came from :func:`prepare_qat` and was trained.

    Errors: ``ValueError`` for another model, or where no batch has run through a module; ``RuntimeError`` where the
    int8 model cannot run.
    """
    _check_prepared(model)
    if isinstance(model, QuantizableGraph):
        return convert_graph(model)
    return _converted(copy.deepcopy(model))


def _converted(model: QuantizableModel) -> QuantizableModel:
    """Converts ``model``, which nobody else holds, in place."""
    missed = [path.removeprefix("model.") for path in eager().unobserved(model)]
    if missed:
        raise ValueError(f"batches must run through every module, none ran through {', '.join(missed)}")
    model.cpu().eval()
    eager().convert(model, model.prepared_for, model.post_ops)
    model.packed_for = model.prepared_for
    if not model.image_shape:  # nothing ran since it was prepared, its state was loaded
        return model
    try:
        with torch.no_grad(), _NoConcatenation():
            # oneDNN keeps kernels ready for the first size that it meets, which is not for us to choose.
            tried = model if model.packed_for == "qnnpack" else copy.deepcopy(model)
            tried(torch.zeros((1, *model.image_shape)))
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"the int8 model cannot run: {error}\nWhere the operation stands in a forward of yours, put it into a "
            "module of its own and pass allow_float=True, or use a layer of ours."
        ) from error
    return model


class _NoConcatenation(TorchFunctionMode):
    """Refuses what tracing may not have seen: a concatenation in the range of the first tensor."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in JOINS and any(tensor.is_quantized for tensor in args[0]):
            raise TypeError("it concatenates int8 tensors, which would take the range of the first")
        return func(*args, **(kwargs or {}))


def freeze(model: QuantizableModel | QuantizableGraph) -> None:
    """Stops the batch statistics and the observers of a model from :func:`prepare_qat`, in place and for good.

    A frozen model that is saved and loaded into one prepared anew must be frozen again. Errors: ``ValueError`` for
    another model, or one that neither ran on batches nor loaded a state.
    """
    _check_prepared(model)
    if isinstance(model, QuantizableGraph):
        freeze_graph(model)
        return
    if eager().unobserved(model):
        raise ValueError("model must have run on batches, or have loaded a state, before its ranges are frozen")
    model.is_frozen = True
    eager().freeze(model)


def _check_prepared(model: nn.Module) -> None:
    kinds = (QuantizableModel, QuantizableGraph)
    if not isinstance(model, kinds) or not model.prepared_for or model.packed_for:
        raise ValueError(f"model must come from prepare_qat and not be converted yet, got a {type(model).__name__}")


def _check_engine(engine: str) -> None:
    if engine not in ("eager", "pt2e"):
        raise ValueError(f"engine must be 'eager' or 'pt2e', got {engine!r}")


def _check_backend(backend: str) -> None:
    supported = [b for b in eager().BACKENDS if b in torch.backends.quantized.supported_engines]
    if backend not in supported:
        raise ValueError(f"backend must be one of {', '.join(supported)} on this machine, got {backend!r}")


def _float_copy(model: nn.Module, allow_float: bool) -> QuantizableModel:
    copied = quantizable(model, allow_float=allow_float)
    if copied.prepared_for:
        raise ValueError("model is prepared or converted already; start from the float model")
    check_float32(copied.model)
    return copied


def _inputs(batches: Iterable[Tensor | Sequence[Tensor]]) -> Iterator[Tensor]:
    if isinstance(batches, Tensor):
        raise TypeError("batches must be an iterable of batches, got a Tensor: put it into a list")
    for i, batch in enumerate(batches):
        input = batch[0] if isinstance(batch, (list, tuple)) and len(batch) > 0 else batch
        if not isinstance(input, Tensor) or input.dtype != torch.float32:
            kind = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(f"batches must hold float32 tensors, or have them first; batch {i} holds {kind}")
        if input.numel() == 0:
            raise ValueError(f"batches must not be empty, batch {i} has shape {list(input.shape)}")
        if not bool(torch.isfinite(input).all()):
            raise ValueError(f"batches must be finite, batch {i} holds NaN or infinity")
        yield input
