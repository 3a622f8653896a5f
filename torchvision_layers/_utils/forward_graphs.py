"""Whether a ``forward`` still does the same after the modules below it were changed, by comparing its graphs."""

from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn

from .tracing import traced_graphs

__all__ = ["ForwardGraphs", "graphs_of"]

#: Classes of constants that are compared by value; functions are by their names, and any others by their classes.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class ForwardGraphs(NamedTuple):
    """The graphs of a ``forward``, with all that it read from modules as constants."""

    cls: type[nn.Module]
    #: Calls with their arguments. ``None`` if the ``forward`` cannot be traced.
    calls: list[Any] | None

    def is_same(self, other: "ForwardGraphs") -> bool:
        """Whether both make the same calls with the same constants."""
        return _are_same(self.calls, other.calls)


def graphs_of(module: nn.Module) -> ForwardGraphs:
    """The graphs of ``module.forward``, with and without optional arguments and gradients."""
    try:
        calls = [_call(root, node) for root, graph in traced_graphs(module) for node in graph.nodes]
    except Exception:  # a user's forward may raise anything when it meets a proxy
        return ForwardGraphs(type(module), None)
    return ForwardGraphs(type(module), calls)


def _call(root: nn.Module, node: torch.fx.Node) -> Any:
    """The call of a node; other nodes in its arguments are given by their names."""
    arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda argument: argument.name)
    is_constant = node.op == "get_attr" and str(node.target).startswith("_tensor_constant")
    return [node.name, node.op, getattr(root, str(node.target)) if is_constant else node.target, arguments]


def _are_same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if (first.shape, first.dtype, first.device) != (second.shape, second.dtype, second.device):
            return False
        return first.is_meta or not bool(((first != second) & ((first == first) | (second == second))).any())
    if isinstance(first, dict) and isinstance(second, dict):
        return _are_same([*first.items()], [*second.items()])
    if isinstance(first, slice) and isinstance(second, slice):
        return _are_same((first.start, first.stop, first.step), (second.start, second.stop, second.step))
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_are_same, first, second))
    if type(first) is not type(second):
        return False
    if isinstance(first, _PLAIN):
        return repr(first) == repr(second)  # equal for NaN
    return getattr(first, "__qualname__", None) == getattr(second, "__qualname__", None)
