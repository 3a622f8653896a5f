"""From a float model to int8: the public functions check their arguments and pick the engine."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from .._utils.checks import check_unwrapped
from .._utils.inputs import Inputs, inputs_of
from .eager.fusion import fuse_children
from .eager.model import QuantizableModel, unwrapped
from .engine import load_engine
from .layers.base import QuantizableLayer
from .precision import in_float32
from .pt2e.model import QuantizableGraph
from .ranges import Percentile, check_ranges
from .settings import Settings
from .verification import WidestBatch, check_converted, check_int8, check_prepared
from .wrapper import Stage

__all__ = ["convert", "freeze", "fuse_model", "prepare_qat", "quantize"]


def fuse_model(model: nn.Module, is_qat: bool | None = None) -> None:
    """Fuses every convolution or linear layer with the batch norm and the ReLU or ReLU6 after it, in place.

    Layers of this package fuse themselves; in the rest of the model, each ``forward`` is traced to find the chains. A
    second call changes nothing. Nothing is fused across a module outside the chain or with hooks, nor inside a child
    that a ``forward`` calls only in part. A ``forward`` that cannot be traced is assumed to call its children as
    wholes; :func:`quantize` compares the results.

    Args:
        model: any model.
        is_qat: ``True`` fuses for quantization-aware training and keeps the batch norms; ``False`` folds them into the
            weights and needs eval mode, results stay equal to 1e-5; ``None`` follows ``model.training``. Default:
            ``None``.

    Errors: ``ValueError`` for ``is_qat=False`` in training mode, or if the modules of a chain are in different modes;
    ``ImportError`` if this torch has no ``torch.ao.quantization``.
    """
    check_unwrapped("model", model)
    if isinstance(model, QuantizableLayer):
        model.fuse_model(is_qat)
    else:
        fuse_children(model, model.training if is_qat is None else is_qat)


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    backend: str = "auto",
    engine: str = "eager",
    allow_float: bool = False,
    dynamic_sizes: bool | None = None,
    ranges: str | Percentile = "histogram",
    rounding: str = "nearest",
    progress: bool = True,
    check: bool = True,
) -> QuantizableModel | QuantizableGraph:
    """Post-training quantization: an int8 copy of ``model``, with ranges observed on ``batches``.

    Both engines also correct biases for the shift that rounding the weights adds to the mean of each channel. The PT2E
    engine then corrects them for what rounding the activations adds, on up to four images of the first batch.

    Args:
        model: float or :func:`quantizable`, fused or not; it is not changed.
        batches: batches of a data loader. A tensor is the only input; a mapping holds inputs by name, or is the only
            input of a ``forward`` whose only argument has another name. A sequence is ``(input, target)`` if the
            ``forward`` of ``model`` takes one input. If it takes several, the items are its inputs, except integer
            tensors at the end that ``forward`` can do without: those are targets. The first item may hold the inputs:
            ``((image, depth), target)``.
        backend: kernels to quantize for. ``"auto"`` chooses the fastest that is right on this CPU: ``"onednn"`` if it
            has VNNI instructions, ``"x86"`` otherwise, ``"qnnpack"`` on ARM. ``"x86"`` is right on every x86 CPU,
            ``"onednn"`` on those with VNNI. The PT2E engine has ``"x86"``, which is its ``"auto"``,
            ``"onnxruntime"``, for export, with additions and outputs in int8 too, and ``"xnnpack"`` if executorch is
            installed. Default: ``"auto"``.
        engine: ``"eager"`` returns modules with int8 weights, ready to run and to script; ``"pt2e"`` returns a graph
            of torchao, to compile and to export. Default: ``"eager"``.
        allow_float: keeps convolutions and linear layers that the engine cannot run in int8 in float, instead of
            raising. Default: ``False``.
        dynamic_sizes: for ``engine="pt2e"``. ``True`` lets the graph take images of every size that the model takes,
            ``False`` only those of the first batch. ``None`` fixes the size, with a warning, if a graph for all sizes
            would take long to export. The eager engine never fixes it. Default: ``None``.
        ranges: how the range of an activation follows from its values. ``"histogram"`` leaves out rare large values as
            long as rounding the others gains from it; ``"minmax"`` holds all values; ``"percentile"`` holds 99.99 % of
            them, a :class:`Percentile` another share; ``"mse"`` has the least squared error of rounding and clipping.
            ``"auto"`` tries these for each activation on about 32 of the images and keeps the one that adds the least
            error to the operators that read the activation. Default: ``"histogram"``.
        rounding: how weights are rounded. ``"nearest"``, or ``"gptq"``, which rounds the weights of a layer one after
            the other, so that later ones make up for the errors of earlier ones on the batches (`GPTQ
            <https://arxiv.org/abs/2210.17323>`_). It is more accurate and takes longer. Default: ``"nearest"``.
        progress: shows a progress bar from the second batch on, and one for GPTQ, if standard error is a terminal.
            Default: ``True``.
        check: compares the int8 model with ``model`` on up to four images of the batch with the largest value, and
            raises if the error is ten times what rounding to int8 explains. The estimate rounds the weights of
            ``model`` and what its operators return, each to its own range. Default: ``True``.

    Errors: ``ValueError`` for an unknown backend, engine, rule of ranges or rounding, no batches, a batch that is empty
    or not finite, outputs that are not finite, a module that no batch reaches, or a model that is scripted, compiled or
    wrapped; ``TypeError`` for inputs that ``forward`` does not accept, for modules that would stay in float, as in
    :func:`quantizable`, and for parameters that are not float32; ``RuntimeError`` if fusing or exporting changed the
    results, if the int8 model cannot run, or if rounding does not explain its error; ``ImportError`` if the engine is
    not installed.
    """
    workflow = load_engine(engine)
    if rounding not in ("nearest", "gptq"):
        raise ValueError(f"rounding must be 'nearest' or 'gptq', got {rounding!r}")
    settings = Settings(
        workflow.choose_backend(backend), allow_float, dynamic_sizes, check_ranges(ranges), rounding, progress
    )
    check_unwrapped("model", model)
    inputs, widest = _inputs(batches, model, progress), WidestBatch()
    with in_float32():
        observed = widest.watch(inputs) if check else inputs
        int8: QuantizableModel | QuantizableGraph = workflow.quantize(model, observed, settings)
        trial = int8.take_trial()
        if check:
            check_int8(trial, unwrapped(model), widest.inputs)
    return int8


def prepare_qat(
    model: nn.Module,
    example: Any = None,
    *,
    backend: str = "auto",
    engine: str = "eager",
    allow_float: bool = False,
    dynamic_sizes: bool | None = None,
    check: bool = True,
) -> QuantizableModel | QuantizableGraph:
    """A copy of ``model`` for quantization-aware training: fused, in training mode, with fake quantization.

    Train it like any model, :func:`freeze` it for the last epochs, then :func:`convert` it. Under autocast it computes
    in float32 as well, because bfloat16 is too coarse for fake quantization.

    Args:
        model: as in :func:`quantize`.
        example: a batch like those of the training, in a form that :func:`quantize` accepts. ``engine="pt2e"`` needs
            one to export the model, the eager engine for a ``forward`` with several inputs; it also tries the int8
            model on these shapes. Default: ``None``.
        backend: as in :func:`quantize`.
        engine: as in :func:`quantize`.
        allow_float: as in :func:`quantize`.
        dynamic_sizes: as in :func:`quantize`.
        check: compares the prepared model, in eval mode and without fake quantization, with ``model`` on ``example``,
            if there is one. Default: ``True``.

    Errors: ``ValueError`` for an unknown backend or engine, no example if one is needed, or a model that is already
    prepared; ``TypeError`` for modules that would stay in float, as in :func:`quantizable`, and for parameters that are
    not float32; ``RuntimeError`` if the prepared model computes something else than ``model``; ``ImportError`` if the
    engine is not installed.
    """
    workflow = load_engine(engine)
    settings = Settings(workflow.choose_backend(backend), allow_float, dynamic_sizes)
    check_unwrapped("model", model)
    inputs = None if example is None else inputs_of("example", example, unwrapped(model))
    with in_float32():
        prepared: QuantizableModel | QuantizableGraph = workflow.prepare_qat(model, inputs, settings)
        if check and inputs is not None:
            check_prepared(prepared, unwrapped(model), inputs)
    return prepared


def convert(model: QuantizableModel | QuantizableGraph, *, check: bool = True) -> QuantizableModel | QuantizableGraph:
    """An int8 copy, on the CPU and in eval mode, of a model that came from :func:`prepare_qat` and was trained.

    Args:
        model: the trained model; it is not changed.
        check: compares the int8 model with ``model`` in eval mode, with its fake quantization, as :func:`quantize`
            compares it with the float model. The inputs are up to four images of the last call of ``model``; without a
            call, as after loading a state, nothing is compared. Default: ``True``.

    Errors: ``ValueError`` for any other model, or if no batch reached a module; ``RuntimeError`` if the int8 model
    cannot run, or if rounding does not explain its error.
    """
    _check_prepared(model)
    with in_float32():
        int8: QuantizableModel | QuantizableGraph = load_engine(model.engine).convert(model)
        trial = int8.take_trial()
        if check:
            check_converted(trial, model)
    return int8


def freeze(model: QuantizableModel | QuantizableGraph) -> None:
    """Stops batch statistics and observers of a model that came from :func:`prepare_qat`, in place and for good.

    If you load the state of a frozen model into a newly prepared one, freeze that one too.

    Errors: ``ValueError`` for any other model, or one that neither ran on batches nor loaded a state.
    """
    _check_prepared(model)
    load_engine(model.engine).freeze(model)


def _check_prepared(model: nn.Module) -> None:
    if not isinstance(model, (QuantizableModel, QuantizableGraph)) or model.stage is not Stage.PREPARED:
        raise ValueError(f"model must come from prepare_qat and not be converted yet, got a {type(model).__name__}")


def _inputs(batches: Iterable[Any], model: nn.Module, progress: bool) -> Iterator[Inputs]:
    if isinstance(batches, Tensor):
        raise TypeError("batches must be an iterable of batches, got a Tensor: pass [batch]")
    called = unwrapped(model)
    total = len(batches) if isinstance(batches, Sized) else None
    bar = None
    for i, batch in enumerate(batches):
        if i == 1 and progress:
            bar = tqdm(desc="calibrating", total=total, initial=1, unit="batch", disable=None)  # None: off a terminal
        yield inputs_of(f"the input in batch {i}", batch, called)
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
