"""Regions of a graph in which a ``forward`` switches gradients or autocasting."""

import operator
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from torch import fx

__all__ = ["calls_autocasting", "inline_regions", "is_recomputed", "region_nodes"]


_GRADIENTS, _AUTOCASTING = _REGIONS = "wrap_with_set_grad_enabled", "wrap_with_autocast"


def inline_regions(module: fx.GraphModule, will_train: bool) -> None:
    """Moves the operators of such regions into the graph around them, in place, where every engine sees them.

    A graph runs in float32, and without gradients unless it is trained, so a region that turns either off changes
    nothing. One that turns autocasting on stays.
    """
    is_changed = False
    while region := next(_regions(module.graph, will_train), None):  # others appear when one is moved
        _inline(module, region)
        is_changed = True
    if is_changed:
        module.recompile()


def region_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes of the regions that stay, and of those in them."""
    for node in module.graph.nodes:
        if getattr(node.target, "__name__", "") in _REGIONS:
            region = attrgetter(next(str(arg.target) for arg in node.args if isinstance(arg, fx.Node)))(module)
            yield from region.graph.nodes
            yield from region_nodes(region)


def calls_autocasting(node: fx.Node) -> bool:
    """Whether a node runs a region that switches autocasting."""
    return getattr(node.target, "__name__", "") == _AUTOCASTING


def is_recomputed(node: fx.Node) -> bool:
    """Whether a checkpoint ran the operator without gradients, to compute it again in the backward pass."""
    return "torch/utils/checkpoint.py" in node.meta.get("stack_trace", "").replace("\\", "/")


def _regions(graph: fx.Graph, will_train: bool) -> Iterator[fx.Node]:
    """The calls of regions that change nothing."""
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if (name == _GRADIENTS and not will_train) or (name == _AUTOCASTING and not node.args[2]):
            yield node


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    start = next(i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node))
    region: Any = node.args[start]
    operands, values = iter(node.args[start + 1 :]), dict[fx.Node, Any]()
    results: Any = ()
    for inner in attrgetter(region.target)(module).graph.nodes:
        if inner.op == "placeholder":
            values[inner] = next(operands)
        elif inner.op == "output":
            results = fx.node.map_arg(inner.args[0], values.__getitem__)
        else:
            with module.graph.inserting_before(node):
                values[inner] = copy = module.graph.node_copy(inner, values.__getitem__)
            if inner.op == "get_attr":
                copy.target = f"{region.target}.{inner.target}"
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    if not region.users:
        module.graph.erase_node(region)
