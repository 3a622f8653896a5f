"""Problems of a graph that is to run in int8 or to be trained: found before calibration, raised at once."""

from collections.abc import Mapping

from torch import fx

from ..._utils.source_lines import source_line
from .nodes import WEIGHTED, excluded_by, float_operands, is_call, module_class, module_path
from .regions import calls_autocasting, is_recomputed, region_nodes
from .weights import constant_products, dynamic_weights

__all__ = [
    "float_problems",
    "lost_problems",
    "out_problems",
    "raise_problems",
    "random_problems",
    "region_problems",
    "weight_problems",
]


def raise_problems(problems: list[str]) -> None:
    """Raises one ``TypeError`` that lists all problems, if there are any."""
    if len(problems) == 1:
        raise TypeError(problems[0])
    if problems:
        raise TypeError("\n".join([f"model has {len(problems)} problems:", *problems]))


def random_problems(nodes: list[fx.Node]) -> list[str]:
    """Random operators that a graph cannot leave out in eval mode."""
    return [
        f"{_describe(node)} draws random numbers, which a graph cannot leave out in eval mode; use nn.Dropout or "
        "torchvision.ops.StochasticDepth, or train with engine='eager'"
        for node in nodes
    ]


def out_problems(graph: fx.Graph) -> list[str]:
    """Operators that get the tensor for their result, which torchao's quantizers reject."""
    return [
        f"{_describe(node)} writes into the tensor in its argument out, which int8 cannot; assign its result instead, "
        "such as y[:, :4] = torch.add(a, b)"
        for node in graph.nodes
        if isinstance(node.kwargs.get("out"), fx.Node)
    ]


def weight_problems(graph: fx.Graph, excluded: Mapping[str, str]) -> list[str]:
    """Layers whose weight depends on the input."""
    return [
        f"{_describe(node)} computes its weight from the input of the model, or from buffers that it changes, and "
        f"int8 weights are constants; pass "
        "allow_float=True to keep it in float"
        for node in dynamic_weights(graph)
        if excluded_by(node, excluded) is None
    ]


def lost_problems(module: fx.GraphModule, is_qat: bool) -> list[str]:
    """Regions of a forward that no graph can hold, whether layers may stay in float or not."""
    regions = list(region_nodes(module))
    problems = [
        f"{_describe(node)} is in a checkpoint whose gradients torch.export loses; call torch.utils.checkpoint with "
        "use_reentrant=False"
        for node in regions
        if is_qat and is_call(node, WEIGHTED) and is_recomputed(node)
    ]
    problems += [
        f"{_describe(node, 'torch.vmap')} cannot be quantized by torchao; compute with the whole batch, or use "
        "engine='eager'"
        for node in module.graph.nodes
        if getattr(node.target, "__name__", "") == "_add_batch_dim"
    ]
    nested = sum(map(calls_autocasting, regions))
    if nested:
        problems.append(
            f"the forward switches autocasting in {nested} place{'s' * (nested > 1)} within a region that turns it on, "
            "which torchao cannot quantize; leave the outer region before"
        )
    return problems


def region_problems(module: fx.GraphModule, excluded: Mapping[str, str]) -> list[str]:
    """Layers within a region of a forward that is a graph of its own, which quantizers do not see."""
    return [
        f"{_describe(node)} would stay in float, because its forward turns autocasting on, or gradients on or off; "
        "move the call out of the context, or pass allow_float=True to allow it"
        for node in region_nodes(module)
        if is_call(node, WEIGHTED) and excluded_by(node, excluded) is None and not is_recomputed(node)
    ]


def float_problems(graph: fx.Graph, excluded: Mapping[str, str]) -> list[str]:
    """Layers, and products with a weight, that would stay in float, as products of activations do."""
    problems, products = [], set(constant_products(graph))
    for node in graph.nodes:
        if (is_call(node, WEIGHTED) or node in products) and excluded_by(node, excluded) is None:
            names = float_operands(node)
            if names:
                problems.append(
                    f"{_describe(node)} would stay in float: its {' and '.join(names)} cannot be quantized; pass "
                    "allow_float=True to allow it"
                )
    return problems


def _describe(node: fx.Node, function: str = "") -> str:
    """The module of a node by path and class, the operator or function, and the line of the model that calls it."""
    path = module_path(node)
    function = function or f"operator {str(node.target).removeprefix('aten.').partition('.')[0]}"
    line = source_line(node.meta.get("stack_trace"))
    call = f"{function} in {line}" if line else function
    return call if path is None else f"{path or 'model'} ({module_class(node)}, {call})"
