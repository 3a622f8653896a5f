"""Operations that write into their input: the form of each that does not, and whether both compute the same."""

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Memory", "UnsupportedError", "make_out_of_place_"]


class UnsupportedError(Exception):
    """An operation that no module can compute; the text completes the sentence "whose forward ..."."""


_OPERATORS: dict[Any, Callable[..., Any]] = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "floordiv", "matmul", "mod", "mul", "pow", "sub", "truediv")
}
# ``bernoulli`` reads probabilities from the tensor that ``bernoulli_`` overwrites; ``resize`` is something else.
_WITHOUT_OTHER_FORM = {"bernoulli_", "resize_"}

#: Functions and methods whose result may be, or share memory with, their first argument.
_VIEWS = {
    *("broadcast_to", "chunk", "contiguous", "cpu", "detach", "diagonal", "dropout", "expand", "expand_as", "flatten"),
    *("float", "getattr", "getitem", "moveaxis", "movedim", "narrow", "permute", "ravel", "reshape", "reshape_as"),
    *("select", "split", "squeeze", "stochastic_depth", "swapaxes", "swapdims", "t", "tensor_split", "to", "transpose"),
    *("type", "type_as", "unbind", "unflatten", "unfold", "unsqueeze", "view", "view_as"),
}


@dataclass(frozen=True)
class Memory:
    """Which modules write, and which return views."""

    #: Modules that write into their first argument and return it.
    writers: set[nn.Module]
    #: Modules whose output may share memory with an argument; ``None`` if unknown.
    views: set[nn.Module] | None

    def duplicate(self, module: nn.Module, copy: nn.Module) -> None:
        """Adds a copy of a module."""
        for original, copied in zip(module.modules(), copy.modules(), strict=True):
            for modules in (self.writers, self.views or set()):
                if original in modules:
                    modules.add(copied)

    def shares(self, module: nn.Module) -> bool:
        """Whether the output of ``module`` may share memory with an argument."""
        if self.views is None:  # layers with parameters return tensors of their own
            return next(module.parameters(), None) is None
        return module in self.views


def make_out_of_place_(module: nn.Module, graph: torch.fx.Graph, nodes: list[torch.fx.Node], memory: Memory) -> bool:
    """Makes each of ``nodes`` that writes into its input return a new tensor, for all that read the input later.

    Operations are replaced by the form that does not write; modules do not write once they are int8.

    Returns whether a node reads the output of a module instead of its input.

    Errors: ``UnsupportedError`` if there is no such form, or if a view of the tensor is read later.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    families: dict[torch.fx.Node, set[torch.fx.Node]] = {}  # the nodes that may share memory with each node
    is_changed = False
    for node in graph.nodes:
        is_writer = node.op == "call_module" and module.get_submodule(str(node.target)) in memory.writers
        form = _other_form(node) if node in nodes else None
        family = {node}
        if form is not None or (is_writer and node.all_input_nodes):
            written = node.all_input_nodes[0]
            others = families[written]
            if buffer := next((other for other in others if other.op == "get_attr"), None):
                raise UnsupportedError(f"writes into self.{buffer.target}")
            for user in [user for user in written.users if order[user] > order[node]]:
                user.replace_input_with(written, node)  # the result of the operation is the same tensor
                is_changed |= is_writer
            if any(order[user] > order[node] for other in others for user in other.users):
                raise UnsupportedError(f"reads a view of a tensor after {_name(node)} wrote into the tensor")
            family |= others
            if form is not None:
                node.target, node.args, node.kwargs = form
        elif _shares_memory(module, node, memory):
            family = family.union(*(families[argument] for argument in node.all_input_nodes))
        for member in family:
            families[member] = family
    return is_changed


def _name(node: torch.fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__


def _shares_memory(module: nn.Module, node: torch.fx.Node, memory: Memory) -> bool:
    if node.op == "call_module":
        return memory.shares(module.get_submodule(str(node.target)))
    return node.op in ("call_function", "call_method") and _name(node) in _VIEWS


def _other_form(node: torch.fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Function, arguments and keyword arguments without writing; ``None`` if the node does not write."""
    target: Any = node.target
    if target in _OPERATORS:
        return _OPERATORS[target], node.args, dict(node.kwargs)
    name = _name(node)
    if "out" in node.kwargs or target is operator.setitem:
        raise UnsupportedError(f"writes into a tensor ({name})")
    if name.endswith("_") and not name.endswith("__") and target not in (operator.and_, operator.or_):
        holders = [Tensor] if isinstance(target, str) else [F, torch]
        other = next((getattr(h, name[:-1]) for h in holders if hasattr(h, name[:-1])), None)
        if other is None or name in _WITHOUT_OTHER_FORM:
            raise UnsupportedError(f"writes into a tensor ({name})")
        return name[:-1] if isinstance(target, str) else other, node.args, dict(node.kwargs)
    return _without_inplace(node)


def _without_inplace(node: torch.fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """The call without ``inplace=True``; ``None`` if it has none."""
    if node.op != "call_function":
        return None
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin function has no signature
        arguments: dict[str, Any] = dict(node.kwargs)
    else:
        arguments = bound.arguments
        if arguments.get("inplace") is True:
            arguments["inplace"] = False
            return node.target, bound.args, bound.kwargs
        return None
    return (node.target, node.args, {**arguments, "inplace": False}) if arguments.get("inplace") is True else None
