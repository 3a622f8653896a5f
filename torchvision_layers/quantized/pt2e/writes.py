"""Writes into tensors that are read again under another name, such as ``x[:, :4] = 0``."""

import operator
from collections.abc import Iterator

import torch
from torch import fx

__all__ = ["reread_after_writes"]

_alias = torch.ops.aten.alias.default


def reread_after_writes(module: fx.GraphModule) -> list[fx.Node]:
    """Gives a tensor, and each view of it, another node after every write, and lets all later nodes read that one.

    Quantizers put the rounding of a tensor directly after its node, which would be before the write. Returns the nodes
    that must read and write the tensor itself, and so must not round their inputs.
    """
    graph, in_float = module.graph, list[fx.Node]()
    for node in graph.nodes:
        root = _written_root(node)
        if root is None or root.op == "get_attr":  # a write to a buffer is for the next call
            continue
        aliases = [root, *_aliases(root)]
        later = {alias: [user for user in alias.users if user > node] for alias in aliases if alias < node}
        if not any(later.values()):
            continue
        for alias, users in later.items():
            if users:
                with graph.inserting_after(node):
                    again = graph.call_function(_alias, (alias,))
                again.meta = {**node.meta, "val": alias.meta["val"]}
                for user in users:
                    user.replace_input_with(alias, again)
        root.meta["is_written"] = True
        in_float += aliases[1:]
    module.recompile()
    return in_float


def _written_root(node: fx.Node) -> fx.Node | None:
    """The tensor that owns the memory that ``node`` writes to, if it writes."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    root = node
    while _is_alias(root):
        root = root.all_input_nodes[0]
    return root


def _aliases(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if _is_alias(user) and user.all_input_nodes[0] is node:
            yield user
            yield from _aliases(user)


def _is_alias(node: fx.Node) -> bool:
    """Whether the node returns its first input or a view of it."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_alias(node.args[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return bool(returns) and returns[0].alias_info is not None
