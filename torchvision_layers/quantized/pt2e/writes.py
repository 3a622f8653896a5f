"""Writes into tensors that are read again under another name, such as ``x[:, :4] = 0``."""

import operator
from collections.abc import Iterator

import torch
from torch import fx

__all__ = ["aliases", "is_write", "memory_owner", "reread_after_writes"]

_alias = torch.ops.aten.alias.default
#: Entries of a node that name the function of the forward that it comes from.
_SOURCES = {"source_fn_stack", "torch_fn"}


def reread_after_writes(module: fx.GraphModule) -> list[fx.Node]:
    """Gives a tensor, and each view of it, another node after every write, and lets all later nodes read that one.

    Quantizers put the rounding of a tensor directly after its node, which would be before the write. Marks
    the nodes whose results are written into, which must not be rounded into a copy. Returns those of them that must
    read and write the tensor itself, and so must not round their inputs.
    """
    graph, in_float = module.graph, list[fx.Node]()
    for node in graph.nodes:
        root = memory_owner(node)
        if not is_write(node) or root.op == "get_attr":  # a write to a buffer is for the next call
            continue
        views = list(aliases(root))
        later = {alias: [user for user in alias.users if user > node] for alias in (root, *views) if alias < node}
        if not any(later.values()):
            continue
        for alias, users in later.items():
            if users:
                with graph.inserting_after(node):
                    again = graph.call_function(_alias, (alias,))
                # As a source of the write, it would be a second output of it, which quantizers reject.
                again.meta = {key: value for key, value in node.meta.items() if key not in _SOURCES}
                again.meta["val"] = alias.meta["val"]
                for user in users:
                    user.replace_input_with(alias, again)
        for alias in (root, *views):
            alias.meta["is_written"] = True
        in_float += views
    if in_float:
        module.recompile()
    return in_float


def aliases(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that return views of a node, or write into it."""
    for user in node.users:
        if _is_alias(user) and user.all_input_nodes[0] is node:
            yield user
            yield from aliases(user)


def is_write(node: fx.Node) -> bool:
    """Whether the node writes into its first input."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def memory_owner(node: fx.Node) -> fx.Node:
    """The node whose memory a node returns: itself unless it returns a view or its input."""
    while _is_alias(node):
        node = node.all_input_nodes[0]
    return node


def _is_alias(node: fx.Node) -> bool:
    """Whether the node returns its first input or a view of it."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_alias(node.args[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return bool(returns) and returns[0].alias_info is not None
