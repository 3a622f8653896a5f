"""The functions of the PT2E engine: quantize, or prepare, freeze and convert."""

import copy
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ..._utils.checks import did_you_mean
from ..._utils.inputs import Inputs
from ..._utils.model_checks import check_module, check_not_lazy
from ..._utils.modules import copy_module
from ..bias_correction import CORRECTING_IMAGES
from ..checks import check_float32_parameters, check_same_as_model, check_same_results, first_of
from ..eager.model import QuantizableModel
from ..finite import calibrating
from ..joining import joined
from ..measurement import OutputMeasurement
from ..range_choice import CalibrationRanges
from ..report_row import ReportRow
from ..settings import BACKENDS, Settings
from ..wrapper import Stage
from . import measuring, torchao
from .bias_correction import correct_biases, correct_int8_biases, float_outputs, measure_inputs
from .bias_steps import fit_biases
from .constants import fold_constants, freeze_weights, remove_unused_tensors
from .export import ExportedModel, export
from .model import QuantizableGraph, make_graph
from .nodes import complex_nodes, excluded_by
from .passes import (
    fold_trained_norms,
    fuse_conv_bn_for_qat,
    isolate_unfoldable_norms,
    name_sources,
    record_modes,
    remove_dropout,
    set_mode,
)
from .problems import (
    float_problems,
    lost_problems,
    out_problems,
    raise_problems,
    random_problems,
    region_problems,
    weight_problems,
)
from .quantizers import exclude, keep_in_float
from .training_checks import check_backward, check_trainable
from .weights import dynamic_weights
from .writes import reread_after_writes

__all__ = ["choose_backend", "convert", "freeze", "measure", "prepare_qat", "quantize"]

_OTHER_BY_EXPORTING = "exporting changed the results: the forward depends on more than its input and its parameters"
_OTHER_IN_EVAL_MODE = (
    "switching the graph to eval mode changed the results: the forward does something in training mode only, such as "
    "auxiliary heads, or calls a batch norm under no_grad(): train it with engine='eager'"
)


def choose_backend(name: str) -> str:
    """Returns ``name``; ``"auto"`` means x86. Raises ``ValueError`` unless this engine has the backend."""
    if name == "auto":
        return "x86"
    if name not in BACKENDS["pt2e"]:
        is_other = name in BACKENDS["eager"]
        remedy = ": engine='eager' has it" if is_other else did_you_mean(name, ["auto", *BACKENDS["pt2e"]])
        choices = ", ".join(BACKENDS["pt2e"])
        raise ValueError(f"backend must be one of auto, {choices} with this engine, got {name!r}{remedy}")
    return name


def quantize(model: nn.Module, batches: Iterator[Inputs], settings: Settings) -> QuantizableGraph:
    """An int8 graph of ``model``, with ranges observed and biases corrected on ``batches``."""
    model = _float_copy(model).eval()
    ranges = CalibrationRanges(settings.ranges)
    batches = ranges.watch(batches)
    first = first_of(batches)
    model = joined(model, first, settings.excluded)
    with torch.no_grad():
        prepared = _prepare_to_calibrate(model, first, settings)
        ranges.model = prepared
        images = prepared.signature.flatten(prepared.first_images(first.map(Tensor.clone), CORRECTING_IMAGES))
        shapes = [tensor.shape for tensor in prepared.signature.flatten(first)]
        keeps_outputs = shapes == [image.shape for image in images]
        with measure_inputs(prepared.body, settings.rounding, keeps_outputs) as (means, outputs):
            with calibrating(model, first, 0):
                check_same_as_model(prepared.call(first.map(Tensor.clone)), model, first, _OTHER_BY_EXPORTING)
            expected = outputs or float_outputs(prepared.body, images)
            for i, batch in enumerate(batches, 1):
                with calibrating(model, batch, i):
                    prepared.call(batch)
        correct_biases(prepared.body, means, settings.progress)
        ranges.apply()
        int8 = _convert_(prepared)
        correct_int8_biases(int8.body, expected, images)
    return int8


def prepare_qat(model: nn.Module, example: Inputs | None, settings: Settings) -> QuantizableGraph:
    """A graph of ``model`` for training, in training mode."""
    if example is None:
        raise ValueError("example must be a batch like those of the training for engine='pt2e', got None")
    model = _float_copy(model).train()
    check_trainable(model, settings.backend)
    check_backward(model, example)
    exported = export(model, example, settings.dynamic_sizes)
    graph_module = exported.graph_module
    keep_in_float([*reread_after_writes(graph_module), *complex_nodes(graph_module)])
    isolate_unfoldable_norms(graph_module, settings.excluded)
    problems = random_problems(record_modes(graph_module))
    rejects_single = False
    if not problems:
        set_mode(graph_module, training=False, norms_train=False)
        with torch.no_grad():
            graph = make_graph(exported, model)
            output = graph.call(example.map(Tensor.clone))
            check_same_as_model(output, copy.deepcopy(model).eval(), example, _OTHER_IN_EVAL_MODE)
            rejects_single = _differs_for_one(graph, copy.deepcopy(model).eval(), example)
        set_mode(graph_module, training=True, norms_train=True)
    prepared = _prepare(exported, model, settings, is_qat=True, problems=problems)
    prepared.rejects_single = rejects_single
    return prepared.train()


def convert(prepared: QuantizableGraph) -> QuantizableGraph:
    """An int8 copy of a prepared graph, on the CPU and in eval mode."""
    return _convert_(copy_module(prepared))


def freeze(prepared: QuantizableGraph) -> None:
    """Stops batch statistics and observers of a prepared graph, in place and for good."""
    if not torchao.is_observed(prepared.body):
        raise ValueError("model must have run on batches, or have loaded a state, before its ranges are frozen")
    prepared.is_frozen = True
    prepared.train(prepared.training)


def measure(
    int8: QuantizableGraph, model: nn.Module, batches: Iterator[Inputs]
) -> tuple[list[ReportRow], OutputMeasurement]:
    """The rows of an int8 graph with their errors, and the errors of its outputs."""
    first = first_of(batches)
    with torch.no_grad():
        if isinstance(model, QuantizableGraph) and model.stage is Stage.PREPARED:
            reference = copy_module(model)
            _simplify_trained_(reference)
        else:
            model = joined(_float_copy(model).eval(), first, int8.settings.excluded)
            reference = _prepare_to_calibrate(model, first, int8.settings)
    return measuring.measure(int8, reference, chain([first], batches))


def _prepare_to_calibrate(model: nn.Module, first: Inputs, settings: Settings) -> QuantizableGraph:
    """The graph of a model in eval mode, with observers."""
    exported = export(model, first, settings.dynamic_sizes)
    keep_in_float([*reread_after_writes(exported.graph_module), *complex_nodes(exported.graph_module)])
    remove_dropout(exported.graph_module)
    fold_constants(exported.graph_module)  # erases what an unused dropout read
    isolate_unfoldable_norms(exported.graph_module, settings.excluded)
    rejects_single = _differs_for_one(make_graph(exported, model), model, first)
    prepared = _prepare(exported, model, settings, is_qat=False)
    prepared.rejects_single = rejects_single
    return prepared


def _simplify_trained_(prepared: QuantizableGraph) -> None:
    """Folds batch norms and constants of a trained graph, in place."""
    prepared.cpu().eval()
    fold_trained_norms(prepared.body)
    fold_constants(prepared.body)
    remove_dropout(prepared.body)


def _prepare(
    exported: ExportedModel,
    model: nn.Module,
    settings: Settings,
    is_qat: bool,
    problems: Sequence[str] = (),
) -> QuantizableGraph:
    """The graph with observers. Errors: ``TypeError`` with ``problems`` and those that come to light here."""
    body = exported.graph_module
    problems = [*problems, *lost_problems(body, is_qat)]
    if settings.allow_float:
        keep_in_float(dynamic_weights(body.graph))
    else:
        problems += [*weight_problems(body.graph, settings.excluded), *region_problems(body, settings.excluded)]
    prepared = make_graph(exported, model)
    prepared.settings = settings
    name_sources(body)
    if is_qat:
        fuse_conv_bn_for_qat(body)
    exclude([node for node in body.graph.nodes if excluded_by(node, settings.excluded) is not None])
    try:
        prepared.body = torchao.prepare(body, settings, is_qat)
    except (AssertionError, IndexError, ValueError) as error:  # from torchao's quantizers
        raise_problems([*problems, *out_problems(body.graph)])
        raise RuntimeError(
            f"model cannot be prepared for {settings.backend}: {type(error).__name__}: {error}"
        ) from error
    prepared.stage, prepared.backend = Stage.PREPARED, settings.backend
    prepared.allows_float = settings.allow_float
    if not settings.allow_float:
        problems += float_problems(prepared.body.graph, settings.excluded)
    raise_problems(problems)
    return prepared


def _convert_(prepared: QuantizableGraph) -> QuantizableGraph:
    """Converts ``prepared`` in place."""
    if not torchao.is_observed(prepared.body):
        raise ValueError("model must have run on some batches before it is converted, it has not")
    _simplify_trained_(prepared)
    prepared.body = torchao.convert(prepared.body)
    freeze_weights(prepared.body)
    remove_unused_tensors(prepared.body)
    fit_biases(prepared.body)
    if not prepared.allows_float:
        raise_problems(float_problems(prepared.body.graph, prepared.settings.excluded))
    prepared.stage, prepared.sample = Stage.INT8, None
    prepared.requires_grad_(False)
    prepared.training = False
    return prepared


def _differs_for_one(graph: QuantizableGraph, model: nn.Module, batch: Inputs) -> bool:
    """Whether the model treats a single image differently, which torch.export does not notice.

    Exported programs take the way of larger batches, without a guard: if the ``forward`` compares the size of the batch
    with one, or squeezes all dimensions.
    """
    if any(graph.signature.batch_dims) or not batch.can_be_cut():  # no forward reads a size
        return False
    tensors, dims = graph.signature.flatten(batch), graph.batch_dims[0]
    if any(set(dims_of_tensor) - {0} for dims_of_tensor in dims):  # the batch is merged with another dimension
        return False
    single = [tensor[:1] if dims[i] else tensor for i, tensor in enumerate(tensors)]
    inputs = graph.signature.rebuild(single)
    try:
        expected = inputs.map(Tensor.clone).run(model)
    except Exception:  # a forward may raise anything for a batch that it does not support
        return False
    try:
        output = graph.call(inputs)
    except ValueError:  # guards exclude it
        return False
    except RuntimeError:  # the guard that excluded it was dropped
        return True
    try:
        check_same_results(output, expected, "", model, inputs)
    except RuntimeError:
        return True
    return False


def _float_copy(model: nn.Module) -> nn.Module:
    check_module("model", model)
    if isinstance(model, QuantizableModel) and model.stage is Stage.FLOAT:
        model = model.model
    if isinstance(model, (QuantizableGraph, QuantizableModel)):
        raise ValueError("model is prepared or converted already; start from the float model")
    check_not_lazy("model", model)
    check_float32_parameters(model)
    return copy_module(model)
