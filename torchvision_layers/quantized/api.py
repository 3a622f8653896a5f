"""From a float model to int8: the public functions check their arguments and pick the engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .._utils.checks import check_bool, did_you_mean
from .._utils.failed_runs import explaining
from .._utils.folded_forms import join_branches
from .._utils.inputs import Inputs, inputs_of
from .._utils.model_checks import check_forward, check_unwrapped
from .batches import iterate
from .checks import check_finite_state, check_norms_train, check_not_converted
from .eager.fusion import fuse_children
from .eager.model import QuantizableModel, unwrapped
from .engine import load_engine
from .exclusion import Exclude, find_excluded
from .layers.base import QuantizableLayer
from .precision import in_float32
from .pt2e.model import QuantizableGraph
from .ranges import Percentile, check_ranges
from .settings import ROUNDINGS, Settings, check_vnni
from .tolerance import Tolerance, keep_tolerance
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

    Errors: ``ValueError`` for ``is_qat=False`` in training mode, or if the modules of a chain are in different modes.
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
    per_channel: bool = True,
    ranges: str | Percentile = "histogram",
    rounding: str = "nearest",
    progress: bool = True,
    exclude: Sequence[Exclude] = (),
    tolerance: float | Callable[[nn.Module], float] | None = None,
    drop: float | None = None,
    check: bool = True,
    vnni: bool = False,
) -> QuantizableModel | QuantizableGraph:
    """Post-training quantization: an int8 copy of ``model``, with ranges observed on ``batches``.

    Parallel convolutions become one if their layer has a method ``folded()`` that joins them, as
    :class:`~torchvision_layers.experimental.nn.RepConv` has. Both engines also correct biases for the shift that
    rounding the weights adds to the mean of each channel. The PT2E engine then corrects them for what rounding the
    activations adds, on up to four images of the first batch.

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
            ``"onnxruntime"``, for export, with additions and outputs in int8 too, ``"litert"``, the same with signed
            activations, ``"tensorrt"``, for export too, with
            ranges that reach equally far to both sides of zero, and ``"xnnpack"`` if executorch is installed. Default:
            ``"auto"``.
        engine: ``"eager"`` returns modules with int8 weights, ready to run and to script; ``"pt2e"`` returns a graph
            of torchao, to compile and to export. Default: ``"eager"``.
        allow_float: keeps convolutions and linear layers that the engine cannot run in int8 in float, instead of
            raising. Default: ``False``.
        dynamic_sizes: for ``engine="pt2e"``. ``True`` lets the graph take images of every size that the model takes,
            ``False`` only those of the first batch. ``None`` fixes the size, with a warning, if a graph for all sizes
            would take long to export, or if torch fails to. The eager engine never fixes it. Default: ``None``.
        per_channel: ``True`` gives each output channel of a weight a scale of its own, ``False`` all of them the same,
            for hardware that knows only that. :func:`deploy.equalize <torchvision_layers.deploy.equalize>` makes the
            channels of ``model`` similar first. Default: ``True``.
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
        exclude: modules to leave in float, with all below them: paths such as ``"classifier.1"``, patterns of paths
            such as ``"features.*.block"``, classes, and functions that get the path and the module. A batch norm and
            an activation that are fused into an excluded convolution or linear layer run in float too. Default: none.
        tolerance: the least signal over error of the outputs on ``batches`` in dB, or a function of a model that
            returns its accuracy. Until it holds, convolutions and linear layers are left in float, those with the
            largest error of their own first; each trial quantizes the model again. :func:`report` shows the trials.
            Default: ``None``, all are int8.
        drop: for a function as ``tolerance``: how much lower the accuracy of the int8 model may be than that of
            ``model``, in the unit of the function. Default: ``None``.
        check: compares the int8 model with ``model`` on up to four images of the batch with the largest value, and
            raises if the error is ten times what rounding to int8 explains. The estimate rounds the weights of
            ``model`` and what its operators return, each to its own range. With ``per_channel=False``, whose error
            has no such bound, the int8 model is only tried. Default: ``True``.
        vnni: for ``backend="onnxruntime"``, whether every x86 CPU that runs the file has VNNI instructions. Without
            them, products of unbounded weights overflow, so ``False`` bounds weights in pairs. ``True`` gives them the
            whole range, which gained 0.4 to 1.8 dB. Default: ``False``.

    Warns ``UserWarning`` if the batches hold only zeros.

    Errors: ``ValueError`` for an unknown backend, engine, rule of ranges or rounding, no batches, a batch that is empty
    or not finite, activations or outputs that are not finite, a module that no batch reaches, an entry of ``exclude``
    that matches no module, a model that is scripted, compiled or wrapped, a function as ``tolerance`` without ``drop``,
    or ``vnni=True`` with another backend; ``TypeError`` for inputs that ``forward`` does not accept, for modules that
    would stay in float, as in :func:`quantizable`, and for parameters that are not float32; ``RuntimeError`` if fusing
    or exporting changed the results, if the int8 model cannot run, if rounding does not explain its error, or if
    ``tolerance`` cannot be kept, with the nearest value; ``ImportError`` if the engine is not installed.
    """
    workflow = load_engine(engine)
    backend = workflow.choose_backend(backend)
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be 'nearest' or 'gptq', got {rounding!r}{did_you_mean(rounding, ROUNDINGS)}")
    called = _check_float(model)
    settings = Settings(
        backend,
        allow_float,
        dynamic_sizes,
        per_channel=check_bool("per_channel", per_channel),
        excluded=find_excluded(called, exclude),
        ranges=check_ranges(ranges),
        rounding=rounding,
        vnni=check_vnni(vnni, engine, backend),
    )

    def run(excluded: dict[str, str], progress: bool = False) -> QuantizableModel | QuantizableGraph:
        seen, widest = list[tuple[str, Inputs]](), WidestBatch()
        inputs = iterate(batches, called, progress, "calibrating", seen)
        with explaining(called, seen), in_float32():
            observed = widest.watch(inputs) if check else inputs
            int8: QuantizableModel | QuantizableGraph = workflow.quantize(
                model, observed, replace(settings, excluded=excluded, progress=progress)
            )
            trial = int8.take_trial()
            if check and per_channel:
                check_int8(trial, called, widest.inputs, widest.first)
        int8.set_source(model)
        return int8

    if tolerance is None:
        if drop is not None:
            raise ValueError(f"drop must be None without a function as tolerance, got {drop!r}")
        return run(settings.excluded, progress)
    if isinstance(batches, Iterator):
        raise ValueError(
            "batches must be a list or a data loader if there is a tolerance: they are read for each trial"
        )
    return keep_tolerance(
        Tolerance(tolerance, drop),
        join_branches(called, settings.excluded),
        lambda: iterate(batches, called, False, ""),
        run,
        lambda int8: workflow.measure(int8, model, iterate(batches, called, False, ""))[0],
        settings.excluded,
        progress,
    )


def prepare_qat(
    model: nn.Module,
    example: Any = None,
    *,
    backend: str = "auto",
    engine: str = "eager",
    allow_float: bool = False,
    dynamic_sizes: bool | None = None,
    per_channel: bool = True,
    exclude: Sequence[Exclude] = (),
    check: bool = True,
    vnni: bool = False,
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
        per_channel: as in :func:`quantize`.
        exclude: as in :func:`quantize`.
        check: compares the prepared model, in eval mode and without fake quantization, with ``model`` on ``example``,
            if there is one. Default: ``True``.
        vnni: as in :func:`quantize`.

    Errors: ``ValueError`` for an unknown backend or engine, no example if one is needed, an entry of ``exclude`` that
    matches no module, a model that is already prepared, or ``vnni=True`` with another backend; ``TypeError`` for
    modules that would stay in float, as in :func:`quantizable`, and for parameters that are not float32;
    ``RuntimeError`` if the prepared model computes something else than ``model``; ``ImportError`` if the engine is not
    installed.
    """
    workflow = load_engine(engine)
    backend = workflow.choose_backend(backend)
    called = _check_float(model)
    settings = Settings(
        backend,
        allow_float,
        dynamic_sizes,
        per_channel=check_bool("per_channel", per_channel),
        excluded=find_excluded(called, exclude),
        vnni=check_vnni(vnni, engine, backend),
    )
    check_norms_train(called)
    inputs = None if example is None else inputs_of("example", example, called)
    seen = [] if inputs is None else [("example", inputs)]
    # Training writes into the tensors of the copy, which inference mode would forbid for good.
    with explaining(called, seen), in_float32(), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        prepared: QuantizableModel | QuantizableGraph = workflow.prepare_qat(model, inputs, settings)
        if check and inputs is not None:
            check_prepared(prepared, called, inputs)
    return prepared


def convert(model: QuantizableModel | QuantizableGraph, *, check: bool = True) -> QuantizableModel | QuantizableGraph:
    """An int8 copy, on the CPU and in eval mode, of a model that came from :func:`prepare_qat` and was trained.

    Args:
        model: the trained model; it is not changed.
        check: compares the int8 model with ``model`` in eval mode, with its fake quantization, as :func:`quantize`
            compares it with the float model. The inputs are up to four images of the last call of ``model``; without a
            call, as after loading a state, nothing is compared. Default: ``True``.

    Errors: ``ValueError`` for any other model, if parameters or statistics are not finite, or if no batch reached a
    module; ``RuntimeError`` if the int8 model cannot run, or if rounding does not explain its error.
    """
    _check_prepared(model)
    check_finite_state(model.get_submodule(model.child))
    with in_float32():
        int8: QuantizableModel | QuantizableGraph = load_engine(model.engine).convert(model)
        trial = int8.take_trial()
        if check:
            check_converted(trial, model)
    int8.set_source(model)
    return int8


def freeze(model: QuantizableModel | QuantizableGraph) -> None:
    """Stops batch statistics and observers of a model that came from :func:`prepare_qat`, in place and for good.

    If you load the state of a frozen model into a newly prepared one, freeze that one too.

    Errors: ``ValueError`` for any other model, or one that neither ran on batches nor loaded a state.
    """
    _check_prepared(model)
    load_engine(model.engine).freeze(model)


def _check_float(model: nn.Module) -> nn.Module:
    """The module that a float model calls; raises if the model is prepared, in a wrapper or overrides ``__call__``."""
    check_not_converted(model)
    check_unwrapped("model", model)
    called = unwrapped(model)
    check_forward(called)
    return called


def _check_prepared(model: nn.Module) -> None:
    if not isinstance(model, (QuantizableModel, QuantizableGraph)):
        check_unwrapped("model", model)
    if not isinstance(model, (QuantizableModel, QuantizableGraph)) or model.stage is not Stage.PREPARED:
        raise ValueError(f"model must come from prepare_qat and not be converted yet, got a {type(model).__name__}")
