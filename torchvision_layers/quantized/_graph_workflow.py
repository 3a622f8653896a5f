"""From a float model to an int8 graph: export, calibrate or train, convert."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from ._checking import check_float32, check_module, check_same_results
from ._engines import pt2e
from ._exporting import export
from ._graph_nodes import CONVS, LINEAR, is_call, module_class, module_path, uncovered
from ._graph_passes import (
    drop_unused,
    fold_trained_norms,
    guard_norms,
    join_norms,
    name_sources,
    note_modes,
    set_mode,
    strip_random,
)
from .graph import QuantizableGraph
from .model import QuantizableModel

__all__ = ["convert_graph", "freeze_graph", "prepare_graph", "quantize_graph"]


def quantize_graph(model: nn.Module, batches: Iterable[Tensor], backend: str, allow_float: bool) -> QuantizableGraph:
    """An int8 graph of ``model``, its ranges observed on ``batches``, which are checked already.

    Errors: those of ``prepare_graph``; ``ValueError`` for no batches, or outputs that are not finite; ``RuntimeError``
    where the graph computes something else than the model.
    """
    _check_backend(backend)
    prepared = None
    model = _float_copy(model).eval()
    with torch.no_grad():
        for batch in batches:
            if prepared is None:
                body = export(model, batch)
                guard_norms(body)
                strip_random(body)
                prepared = _prepared(body, model, backend, allow_float, is_qat=False)
                _check_equal(prepared(batch), model, batch, "exporting")
            else:
                prepared(batch)
    if prepared is None:
        raise ValueError("batches must hold at least one batch, got none")
    return _converted(prepared)


def prepare_graph(model: nn.Module, example: Tensor, backend: str, allow_float: bool) -> QuantizableGraph:
    """A graph of ``model`` for quantization-aware training, in training mode.

    Args:
        model: any float model.
        example: an input such as will come, which is checked already.
        backend: kernels to quantize for.
        allow_float: leaves in float what the backend does not quantize, instead of raising.

    Errors: ``ValueError`` for another backend, or a model that is prepared already; ``TypeError`` for
    parameters that are not float32, a model that returns no single tensor, or convolutions, projections and
    products that would stay in float; ``RuntimeError`` for a model that cannot be exported, or that differs between
    training and eval in more than batch norms, dropouts and stochastic depth; ``ImportError`` without torchao.
    """
    _check_backend(backend)
    if backend == "xnnpack":
        # Its quantizer looks for batch norms that follow convolutions as they are.
        raise ValueError(
            "backend must be x86 or onnxruntime to train with this engine, got 'xnnpack', to calibrate only"
        )
    model = _float_copy(model).train()
    body = export(model, example)
    guard_norms(body)
    for node in note_modes(body):
        raise TypeError(f"{_where(node)} draws random numbers, which a graph cannot leave out in eval")
    set_mode(body, training=False, norms_train=False)
    with torch.no_grad():
        _check_equal(body(example), copy.deepcopy(model).eval(), example, "putting the graph into eval mode")
    set_mode(body, training=True, norms_train=True)
    return _prepared(body, model, backend, allow_float, is_qat=True).train()


def _prepared(
    body: fx.GraphModule, model: nn.Module, backend: str, allow_float: bool, is_qat: bool
) -> QuantizableGraph:
    engine = pt2e()
    if not allow_float:
        _check_weights(body.graph)
    prepared = QuantizableGraph(body, model)
    name_sources(body)
    if is_qat:
        join_norms(body)
    try:
        prepared.body = engine.prepare(body, backend, is_qat)
    except ValueError as error:
        raise RuntimeError(f"model cannot be prepared for {backend}: {error}") from error
    prepared.prepared_for = backend
    prepared.allows_float = allow_float
    if not allow_float:
        _check_covered(prepared.body.graph)
    return prepared


def convert_graph(prepared: QuantizableGraph) -> QuantizableGraph:
    """An int8 copy, on the CPU and in eval mode, of a graph that came from ``prepare_graph`` and was trained.

    Errors: ``ValueError`` for another graph, or one that nothing ran through.
    """
    return _converted(copy.deepcopy(prepared))


def _converted(prepared: QuantizableGraph) -> QuantizableGraph:
    """Converts ``prepared``, which nobody else holds, in place."""
    engine = pt2e()
    if not engine.is_observed(prepared.body):
        raise ValueError("model must have run on some batches before it is converted, it has not")
    prepared.cpu().eval()
    fold_trained_norms(prepared.body)
    strip_random(prepared.body)
    prepared.body = engine.convert(prepared.body)
    drop_unused(prepared.body)
    if not prepared.allows_float:
        _check_covered(prepared.body.graph)
    prepared.packed_for = prepared.prepared_for
    prepared.requires_grad_(False)
    prepared.training = False
    return prepared


def freeze_graph(prepared: QuantizableGraph) -> None:
    """Stops the batch statistics and the observers of a graph from ``prepare_graph``, in place and for good.

    Errors: ``ValueError`` for one that nothing ran through.
    """
    if not pt2e().is_observed(prepared.body):
        raise ValueError("batches must have run through the model before it is frozen, none has: it has no ranges yet")
    prepared.is_frozen = True
    prepared.train(prepared.training)


def _check_backend(backend: str) -> None:
    backends = pt2e().BACKENDS
    if backend not in backends:
        raise ValueError(f"backend must be one of {', '.join(backends)} with this engine, got {backend!r}")


def _float_copy(model: nn.Module) -> nn.Module:
    check_module(model)
    if isinstance(model, QuantizableModel) and not model.prepared_for:
        model = model.model
    if isinstance(model, (QuantizableGraph, QuantizableModel)):
        raise ValueError("model is prepared or converted already; start from the float model")
    check_float32(model)
    return copy.deepcopy(model)


def _check_equal(got: Tensor, model: nn.Module, input: Tensor, what: str) -> None:
    problem = f"{what} changed the results: the forward depends on more than its input and its parameters"
    expected = model(input)
    try:
        check_same_results(got, expected, problem)
    except RuntimeError as error:
        if torch.equal(model(input), expected):
            raise
        raise RuntimeError(
            "model must give the same for the same input in eval mode: its forward draws random numbers, or changes "
            "what it computes with"
        ) from error


def _check_weights(graph: fx.Graph) -> None:
    for node in graph.nodes:
        weight = node.args[1] if is_call(node, CONVS | LINEAR) else None
        if isinstance(weight, fx.Node) and weight.op != "get_attr":
            raise TypeError(
                f"{_where(node)} computes its weight in every forward, which int8 cannot hold; make a plain layer of "
                "it or pass allow_float=True"
            )


def _check_covered(graph: fx.Graph) -> None:
    for node, missing in uncovered(graph):
        raise TypeError(
            f"{_where(node)} would stay in float: its {' and '.join(missing)} cannot be quantized; "
            "pass allow_float=True to leave it so"
        )


def _where(node: fx.Node) -> str:
    path = module_path(node)
    operator = str(node.target).removeprefix("aten.").partition(".")[0]
    if path is None:
        return f"an operator {operator}"
    return f"{path or 'model'} ({module_class(node)}, operator {operator})"
