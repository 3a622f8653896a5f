"""The functions of the PT2E engine: quantize, or prepare, freeze and convert."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from ..._utils.checks import check_module, check_not_lazy
from ..._utils.inputs import Inputs
from ..checks import check_float32_parameters, check_same_results
from ..eager.model import QuantizableModel
from ..wrapper import Stage
from . import torchao
from .export import ExportedModel, export
from .model import QuantizableGraph
from .nodes import CONVS, LINEAR, is_call, module_class, module_path, unquantized_ops
from .passes import (
    fold_trained_norms,
    fuse_conv_bn_for_qat,
    isolate_unfoldable_norms,
    name_sources,
    record_modes,
    remove_dropout,
    remove_unused_tensors,
    set_mode,
)

__all__ = ["choose_backend", "convert", "freeze", "prepare_qat", "quantize"]


def choose_backend(name: str) -> str:
    """Returns ``name``; ``"auto"`` means x86. Raises ``ValueError`` unless this engine has the backend."""
    if name == "auto":
        return "x86"
    if name not in torchao.BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(torchao.BACKENDS)} with this engine, got {name!r}")
    return name


def quantize(
    model: nn.Module,
    batches: Iterator[Inputs],
    backend: str,
    allow_float: bool,
    dynamic_sizes: bool | None = None,
) -> QuantizableGraph:
    """An int8 graph of ``model``, with ranges observed on ``batches``; for ``dynamic_sizes`` see :func:`export`."""
    model = _float_copy(model).eval()
    inputs = next(batches, None)
    if inputs is None:
        raise ValueError("batches must hold at least one batch, got none")
    first = _only_input(inputs)
    with torch.no_grad():
        exported = export(model, first, dynamic_sizes)
        isolate_unfoldable_norms(exported.graph_module)
        remove_dropout(exported.graph_module)
        prepared = _prepare(exported, model, backend, allow_float, is_qat=False)
        _check_same_results(prepared(first), model, first, "exporting")
        for batch in batches:
            prepared(_only_input(batch))
    return _convert_(prepared)


def prepare_qat(model: nn.Module, inputs: Inputs | None, backend: str, allow_float: bool) -> QuantizableGraph:
    """A graph of ``model`` for quantization-aware training, in training mode."""
    if inputs is None:
        raise ValueError("example must be a batch like those of the training for engine='pt2e', got None")
    if backend == "xnnpack":  # its quantizer looks for batch norms directly after convolutions
        raise ValueError(
            "backend must be x86 or onnxruntime to train with this engine, got 'xnnpack', to calibrate only"
        )
    example = _only_input(inputs)
    model = _float_copy(model).train()
    exported = export(model, example)
    graph_module = exported.graph_module
    isolate_unfoldable_norms(graph_module)
    for node in record_modes(graph_module):
        raise TypeError(f"{_describe(node)} draws random numbers, which a graph cannot leave out in eval mode")
    set_mode(graph_module, training=False, norms_train=False)
    with torch.no_grad():
        _check_same_results(
            graph_module(example), copy.deepcopy(model).eval(), example, "switching the graph to eval mode"
        )
    set_mode(graph_module, training=True, norms_train=True)
    return _prepare(exported, model, backend, allow_float, is_qat=True).train()


def convert(prepared: QuantizableGraph) -> QuantizableGraph:
    """An int8 copy of a prepared graph, on the CPU and in eval mode."""
    return _convert_(copy.deepcopy(prepared))


def freeze(prepared: QuantizableGraph) -> None:
    """Stops batch statistics and observers of a prepared graph, in place and for good."""
    if not torchao.is_observed(prepared.body):
        raise ValueError("model must have run on batches, or have loaded a state, before its ranges are frozen")
    prepared.is_frozen = True
    prepared.train(prepared.training)


def _only_input(inputs: Inputs) -> Tensor:
    values = [*inputs.args, *inputs.kwargs.values()]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise TypeError(f"model must take one tensor with engine='pt2e', got {len(values)} inputs")
    return values[0]


def _prepare(
    exported: ExportedModel, model: nn.Module, backend: str, allow_float: bool, is_qat: bool
) -> QuantizableGraph:
    body = exported.graph_module
    if not allow_float:
        _check_weights(body.graph)
    prepared = QuantizableGraph(exported, model)
    name_sources(body)
    if is_qat:
        fuse_conv_bn_for_qat(body)
    try:
        prepared.body = torchao.prepare(body, backend, is_qat)
    except ValueError as error:
        raise RuntimeError(f"model cannot be prepared for {backend}: {error}") from error
    prepared.stage, prepared.backend = Stage.PREPARED, backend
    prepared.allows_float = allow_float
    if not allow_float:
        _check_quantized(prepared.body.graph)
    return prepared


def _convert_(prepared: QuantizableGraph) -> QuantizableGraph:
    """Converts ``prepared`` in place."""
    if not torchao.is_observed(prepared.body):
        raise ValueError("model must have run on some batches before it is converted, it has not")
    prepared.cpu().eval()
    fold_trained_norms(prepared.body)
    remove_dropout(prepared.body)
    prepared.body = torchao.convert(prepared.body)
    remove_unused_tensors(prepared.body)
    if not prepared.allows_float:
        _check_quantized(prepared.body.graph)
    prepared.stage = Stage.INT8
    prepared.requires_grad_(False)
    prepared.training = False
    return prepared


def _float_copy(model: nn.Module) -> nn.Module:
    check_module("model", model)
    if isinstance(model, QuantizableModel) and model.stage is Stage.FLOAT:
        model = model.model
    if isinstance(model, (QuantizableGraph, QuantizableModel)):
        raise ValueError("model is prepared or converted already; start from the float model")
    check_not_lazy("model", model)
    check_float32_parameters(model)
    return copy.deepcopy(model)


def _check_same_results(output: Tensor, model: nn.Module, input: Tensor, step: str) -> None:
    message = f"{step} changed the results: the forward depends on more than its input and its parameters"
    expected = model(input)
    try:
        check_same_results(output, expected, message)
    except RuntimeError as error:
        if torch.equal(model(input), expected):
            raise
        raise RuntimeError(
            "model must return the same result for the same input in eval mode: its forward draws random numbers, or "
            "changes its own state"
        ) from error


def _check_weights(graph: fx.Graph) -> None:
    for node in graph.nodes:
        weight = node.args[1] if is_call(node, CONVS | LINEAR) else None
        if isinstance(weight, fx.Node) and weight.op != "get_attr":
            raise TypeError(
                f"{_describe(node)} computes its weight in every forward, which int8 cannot hold; use a plain layer "
                "or pass allow_float=True"
            )


def _check_quantized(graph: fx.Graph) -> None:
    for node, names in unquantized_ops(graph):
        raise TypeError(
            f"{_describe(node)} would stay in float: its {' and '.join(names)} cannot be quantized; "
            "pass allow_float=True to allow it"
        )


def _describe(node: fx.Node) -> str:
    path = module_path(node)
    operator = str(node.target).removeprefix("aten.").partition(".")[0]
    if path is None:
        return f"an operator {operator}"
    return f"{path or 'model'} ({module_class(node)}, operator {operator})"
