"""The functions of the eager engine: quantize, or prepare, freeze and convert."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from itertools import chain

import torch
from torch import Tensor, nn

from ..._utils.amx import has_vnni
from ..._utils.checks import did_you_mean
from ..._utils.hooked_weights import (
    hooked_paths,
    list_removals,
    list_removals_of_changing_norms,
)
from ..._utils.inputs import Inputs
from ..._utils.model_checks import check_module, check_not_lazy
from ..._utils.modules import copy_module
from ..._utils.tracing import TraceCache
from ..bias_correction import CORRECTING_IMAGES
from ..checks import check_float32_parameters, check_not_converted, first_of
from ..finite import calibrating
from ..joining import joined
from ..layers.base import needs_folded_form
from ..layers.observed import QuantStub
from ..measurement import OutputMeasurement
from ..range_choice import CalibrationRanges, not_observing
from ..report_row import ReportRow
from ..settings import BACKENDS, Settings
from ..wrapper import Stage
from . import measuring
from .bias_correction import correct_biases, correct_in_turn, measure_inputs, record_outputs
from .first_run import running_module
from .flat_sequential import flatten_sequentials
from .float_forwards import add_int8_children
from .fusion import fuse_children
from .int8_arithmetic import NoMixedScales
from .model import QuantizableModel, make_quantizable_, unwrapped
from .post_ops import find_post_ops, select_worthwhile
from .problems import describe_running, first_sentence
from .rewritten_copy import try_quantizable
from .torch_ao import converting, preparing
from .torch_ao.bias_steps import fit_biases
from .torch_ao.checked_rounding import check_roundings

__all__ = ["choose_backend", "convert", "freeze", "measure", "prepare_qat", "quantize"]


def choose_backend(name: str) -> str:
    """Returns ``name``, or the backend that ``"auto"`` means on this machine.

    Errors: ``ValueError`` unless torch has the backend here.
    """
    supported = [backend for backend in BACKENDS["eager"] if backend in torch.backends.quantized.supported_engines]
    if name == "auto":
        if "x86" not in supported:
            return supported[-1]
        return "onednn" if has_vnni() and "onednn" in supported else "x86"
    if name not in supported:
        is_other = name in BACKENDS["pt2e"]
        remedy = ": engine='pt2e' has it" if is_other else did_you_mean(name, ["auto", *supported])
        raise ValueError(f"backend must be one of auto, {', '.join(supported)} on this machine, got {name!r}{remedy}")
    return name


def quantize(model: nn.Module, batches: Iterator[Inputs], settings: Settings) -> QuantizableModel:
    """An int8 copy of ``model``, with ranges observed and biases corrected on ``batches``."""
    _check_dynamic(settings.dynamic_sizes)
    _check_float(model)
    ranges = CalibrationRanges(settings.ranges)
    batches = ranges.watch(batches)
    first = first_of(batches)
    model = joined(model, first, settings.excluded, needs_folded_form)
    traces = TraceCache()
    prepared, calls = try_quantizable(model, first, settings, False, traces)
    with torch.no_grad():
        if settings.backend == "onednn":
            post_ops = find_post_ops(prepared, calls, traces.__getitem__)
            prepared.post_ops = select_worthwhile(prepared, post_ops, calls)
        preparing.prepare(prepared, settings, prepared.post_ops, is_qat=False, calls=calls)
        ranges.model = prepared
        prepared.stage, prepared.backend, prepared.settings = Stage.PREPARED, settings.backend, settings
        unused = [module for module in prepared.modules() if hasattr(module, "is_unused")]
        handles = [module.register_forward_pre_hook(_raise_late_call) for module in unused]
        images = prepared.first_images(first, CORRECTING_IMAGES).map(Tensor.clone)
        is_whole = images.shapes() == first.shapes()
        with measure_inputs(prepared, settings.rounding) as means:
            with calibrating(unwrapped(model), first, 0), record_outputs(means) as expected:
                first.run(prepared)
            for i, batch in enumerate(batches, 1):
                with calibrating(unwrapped(model), batch, i):
                    batch.run(prepared)
        for handle in handles:
            handle.remove()
        if not is_whole:
            with not_observing(prepared), record_outputs(means) as expected:
                images.map(Tensor.clone).run(prepared)
        correct_biases(means, settings.progress)
        ranges.apply()
        correct_in_turn(prepared, expected, images)
    return _convert_(prepared)


def prepare_qat(model: nn.Module, example: Inputs | None, settings: Settings) -> QuantizableModel:
    """A copy of ``model`` that is fused, in training mode, with fake quantization."""
    _check_dynamic(settings.dynamic_sizes)
    _check_float(model)
    _check_no_hooked_weights(model)
    calls, traces = None, TraceCache()
    if example is None:
        prepared = make_quantizable_(
            copy_module(model).train(), settings.allow_float, will_train=True, excluded=settings.excluded
        )
        fuse_children(prepared, is_qat=True, trace=traces.__getitem__)
        add_int8_children(prepared.model, will_train=True, run=None)
    else:
        prepared, calls = try_quantizable(model, example, settings, True, traces)
    if settings.backend == "onednn":
        prepared.post_ops = find_post_ops(prepared, calls, traces.__getitem__)
    preparing.prepare(prepared, settings, prepared.post_ops, is_qat=True, calls=calls)
    prepared.stage, prepared.backend, prepared.settings = Stage.PREPARED, settings.backend, settings
    return prepared


def convert(prepared: QuantizableModel) -> QuantizableModel:
    """An int8 copy of a prepared model, on the CPU and in eval mode."""
    return _convert_(copy_module(prepared))


def freeze(prepared: QuantizableModel) -> None:
    """Stops batch statistics and observers of a prepared model, in place and for good."""
    if preparing.unobserved_paths(prepared):
        raise ValueError("model must have run on batches, or have loaded a state, before its ranges are frozen")
    prepared.is_frozen = True
    preparing.freeze(prepared)


def measure(
    int8: QuantizableModel, model: nn.Module, batches: Iterator[Inputs]
) -> tuple[list[ReportRow], OutputMeasurement]:
    """The rows of an int8 model with their errors, and the errors of its outputs."""
    first = first_of(batches)
    if isinstance(model, QuantizableModel) and model.stage is Stage.PREPARED:
        prepared = copy_module(model)
    else:
        _check_float(model)
        model = joined(model, first, int8.settings.excluded, needs_folded_form)
        prepared, calls = try_quantizable(model, first, int8.settings, False, TraceCache())
        preparing.prepare(prepared, int8.settings, [], is_qat=False, calls=calls)
    return measuring.measure(int8, measuring.make_reference_(prepared, int8), chain([first], batches))


def _check_dynamic(dynamic_sizes: bool | None) -> None:
    if dynamic_sizes is False:
        raise ValueError("dynamic_sizes must be None or True with engine='eager', which never fixes sizes, got False")


def _check_float(model: nn.Module) -> None:
    check_module("model", model)
    check_not_converted(model)
    check_not_lazy("model", model)
    check_float32_parameters(model)


def _check_no_hooked_weights(model: nn.Module) -> None:
    paths = hooked_paths(model)
    if paths:
        others = "" if list_removals_of_changing_norms(model) else "; engine='pt2e' trains what the hooks read"
        raise ValueError(
            f"weights must be parameters to be trained with engine='eager', hooks compute those of {', '.join(paths)}: "
            f"to train their present values, first call {', '.join(list_removals(model))}{others}"
        )


def _raise_late_call(module: nn.Module, args: object) -> None:
    raise RuntimeError(
        f"the first batch must reach every module that a later one reaches, a later one calls {module} "
        "for the first time"
    )


def _convert_(model: QuantizableModel) -> QuantizableModel:
    """Converts ``model`` in place, and tries it."""
    inputs = model.trial_inputs
    if inputs is not None and not any(map(Tensor.is_floating_point, inputs.tensors())):
        model.quant = QuantStub()  # which does nothing, because all inputs are integers
    if "quant" in preparing.unobserved_paths(model) or not preparing.is_observed(model):
        raise ValueError("model must have run on batches, or have loaded a state, before it is converted")
    preparing.leave_unobserved_in_float(model)
    model.cpu().eval()
    converting.convert(model, model.backend, model.post_ops)
    model.stage, model.sample = Stage.INT8, None
    model.requires_grad_(False)  # of layers in float
    # If there are none, no batch ran since it was prepared: its state was loaded.
    trial = None if model.trial_inputs is None else _try(model, model.trial_inputs)
    for each in filter(None, (model, trial)):
        check_roundings(each)
        if model.backend != "qnnpack":  # its kernels accept any input: there the layers must check
            flatten_sequentials(each, converting.FLAT_KERNELS)
    model.set_trial(trial)
    return model


def _try(model: QuantizableModel, inputs: Inputs) -> QuantizableModel:
    """Runs an int8 model on zeros in the shapes of ``inputs``; of a single input, on one image if ``forward`` takes it.

    Returns the model or, as oneDNN caches the kernel for the first size that it meets, the copy that ran.
    """
    if len(inputs.tensors()) == 1:
        with suppress(Exception):
            return _run_on_zeros(model, inputs.map(lambda t: t.new_zeros(1, *t.shape[1:], device="cpu")))
    zeros = inputs.map(lambda t: t.new_zeros(t.shape, device="cpu"))
    try:
        return _run_on_zeros(model, zeros)
    except Exception as error:  # a user's forward may raise anything
        stack: list[nn.Module] = []
        with torch.no_grad(), running_module(model, stack), suppress(Exception):
            zeros.run(model)
        where = describe_running(model.model, stack)
        raise RuntimeError(f"the int8 model cannot run: in it, {where}, and raises: {first_sentence(error)}") from error


def _run_on_zeros(model: QuantizableModel, zeros: Inputs) -> QuantizableModel:
    with torch.no_grad(), NoMixedScales():
        shared = converting.kernels_of_all_sizes(model, model.backend)
        trial = model if model.backend == "qnnpack" else copy.deepcopy(model, {id(m): m for m in shared})
        with fit_biases(trial) if model.backend == "qnnpack" else nullcontext():
            zeros.run(trial)
    return trial
