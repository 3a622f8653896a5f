"""Constant parts of an exported graph, computed once before calibration."""

import itertools
from collections.abc import Container, Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from .nodes import WEIGHTED, is_call, is_quantize, is_random, module_path
from .writes import aliases, is_write, memory_owner

__all__ = [
    "add_parameter",
    "constant_nodes",
    "erase_unused_ops",
    "fold_constants",
    "freeze_weights",
    "register_parameter",
    "remove_unused_tensors",
]


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that have the same value in every call."""
    # A write of something else makes a tensor variable, and any write a buffer.
    variable = set[fx.Node]()
    while True:
        constants = set[fx.Node]()
        for node in graph.nodes:
            is_op = node.op == "call_function" and not is_random(node)
            if (is_op or node.op == "get_attr") and node not in variable and constants.issuperset(node.all_input_nodes):
                constants.add(node)
        owners = {memory_owner(node) for node in graph.nodes if is_write(node) and node not in constants}
        owners |= {owner for node in constants if is_write(node) and (owner := memory_owner(node)).op == "get_attr"}
        if not owners & constants:
            return constants
        variable |= owners


def fold_constants(module: fx.GraphModule) -> None:
    """Makes weights and biases that are computed, and results of layers on constants, parameters.

    Weight standardization and parametrizations compute weights; Swin V2 computes its position biases by layers. A node
    must not read what was written after it, see :func:`reread_after_writes`.
    """
    constants = constant_nodes(module.graph)
    sources = _sources(module.graph, constants)
    cone = _cone(sources)
    values = _run(module, cone)
    for source, name in sources.items():
        constant = add_parameter(module, source, values[source], f"computed_{name}")
        constant.meta.update({"val": source.meta["val"], "is_computed": True})
        source.replace_all_uses_with(constant, lambda user: user not in constants)
    for node in sorted(cone, reverse=True):
        owner = memory_owner(node)
        is_private = all(cone.issuperset(view.users) for view in (owner, *aliases(owner)))
        if node.op != "get_attr" and not node.users and is_private:
            module.graph.erase_node(node)
    if erase_unused_ops(module.graph) or sources:
        module.recompile()


def freeze_weights(module: fx.GraphModule) -> None:
    """Replaces weights that a converted graph still rounds in each call by integers, in place.

    torchao leaves those of layers whose output is written into later, as it takes them for buffers that change.
    """
    constants = constant_nodes(module.graph)
    rounded = [node for node in module.graph.nodes if node in constants and is_quantize(node)]
    values = _run(module, _cone(rounded))
    for node in rounded:
        number = next(number for number in itertools.count() if not hasattr(module, f"_frozen_param{number}"))
        module.register_buffer(f"_frozen_param{number}", values[node])
        with module.graph.inserting_before(node):
            frozen = module.graph.get_attr(f"_frozen_param{number}")
        frozen.meta = dict(node.meta)
        node.replace_all_uses_with(frozen)
        sources = node.all_input_nodes
        module.graph.erase_node(node)
        for source in sources:
            if source.op == "get_attr" and not source.users:
                module.graph.erase_node(source)
    if rounded:
        module.recompile()


def erase_unused_ops(graph: fx.Graph) -> bool:
    """Erases operators without users, but neither the guards of the program nor tensors, which are its state.

    Returns whether there were any.
    """
    return graph.eliminate_dead_code(_has_effect)


def _has_effect(node: fx.Node) -> bool:
    """Whether a node without users does something, such as a write into a tensor that a later node reads."""
    owner = memory_owner(node)
    if not is_write(node) or owner.op != "call_function":
        return bool(node.op != "call_function" or node.is_impure())
    return any(user > node for alias in (owner, *aliases(owner)) for user in alias.users)


def _sources(graph: fx.Graph, constants: Container[fx.Node]) -> dict[fx.Node, str]:
    """The nodes to fold, and what they are: weights and biases of layers, and what follows from layers on constants."""
    sources, from_layers = dict[fx.Node, str](), set[fx.Node]()
    for node in graph.nodes:
        if node in constants:
            if is_call(node, WEIGHTED) or any(input in from_layers for input in node.all_input_nodes):
                from_layers.add(node)
                if any(user not in constants for user in node.users):
                    sources[node] = "result"
        elif is_call(node, WEIGHTED):
            for name, source in zip(("weight", "bias"), node.args[1:3], strict=False):
                if isinstance(source, fx.Node) and source in constants and source.op != "get_attr":
                    sources.setdefault(source, name)
    return sources


def _cone(sources: Iterable[fx.Node]) -> set[fx.Node]:
    """All nodes that the sources depend on, with those that write into them."""
    cone, pending = set[fx.Node](), list(sources)
    while pending:
        node = pending.pop()
        if node not in cone:
            cone.add(node)
            pending += [*node.all_input_nodes, *filter(is_write, aliases(node))]
    return cone


def _run(module: fx.GraphModule, cone: set[fx.Node]) -> dict[fx.Node, Tensor]:
    """The value of each node directly after it ran."""
    values, copies = dict[fx.Node, Any](), dict[fx.Node, Tensor]()
    for node in module.graph.nodes:
        if node not in cone:
            continue
        if node.op == "get_attr":
            values[node] = attrgetter(node.target)(module).detach()
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)
        if isinstance(values[node], Tensor):
            copies[node] = values[node].clone()
    return copies


def add_parameter(module: fx.GraphModule, node: fx.Node, value: Tensor, name: str) -> fx.Node:
    """Registers a parameter at the module of a node, or at the model if the graph keeps no such module.

    Returns a node that reads it.
    """
    owner = module_path(node) or ""
    if not any(path == owner for path, _ in module.named_modules()):
        owner = ""
    return register_parameter(module, node, value, owner, name)


def register_parameter(module: fx.GraphModule, before: fx.Node, value: Tensor, owner: str, name: str) -> fx.Node:
    """Registers a parameter at the module with the path ``owner``, under its name or that name with a number.

    Returns a node in front of ``before`` that reads it.
    """
    parent, free, number = module.get_submodule(owner), name, 1
    while hasattr(parent, free):
        free, number = f"{name}_{number}", number + 1
    parent.register_parameter(free, nn.Parameter(value, requires_grad=False))
    with module.graph.inserting_before(before):
        return module.graph.get_attr(f"{owner}.{free}".lstrip("."))


def remove_unused_tensors(module: fx.GraphModule) -> None:
    """Deletes tensors that no node reads, which would otherwise stay in the state dict."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path, _ in [*module.named_parameters(), *module.named_buffers()]:
        if path not in used:
            parent, _, name = path.rpartition(".")
            delattr(module.get_submodule(parent), name)
