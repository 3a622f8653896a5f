"""How the graph of a ``forward`` uses the modules below it: which of them feed one another and nothing else."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torch.fx

__all__ = ["CONCATENATION_OPS", "ForwardTrace", "analyze", "intersect", "sequence"]

#: Functions that place tensors side by side.
CONCATENATION_OPS = {
    torch.cat,
    torch.concat,
    torch.concatenate,
    torch.stack,
    torch.hstack,
    torch.vstack,
    torch.dstack,
}
#: Methods, functions and attributes that read nothing but the shape, type or place of a tensor.
_QUERIES = {"dim", "is_floating_point", "ndimension", "numel", "size", torch.is_floating_point, torch.numel}
_ATTRIBUTES = {"device", "dtype", "ndim", "requires_grad", "shape"}
#: Methods and functions that read nothing else of the tensors after their first argument.
_LIKE = {"expand_as", "reshape_as", "type_as", "view_as"}


@dataclass(frozen=True)
class ForwardTrace:
    """How one ``forward`` uses the modules below it, each given by its name."""

    #: Sequences of modules in which each module feeds the next and nothing else.
    chains: list[list[str]] = field(default_factory=list)
    #: Modules that are only ever called as a whole.
    whole: list[str] = field(default_factory=list)
    #: Modules that are called in part, or have a parameter read.
    parts: list[str] = field(default_factory=list)
    #: Modules that take two different tensors, each with the chain that produces the first.
    pairs: list[tuple[str, list[str]]] = field(default_factory=list)
    #: Position of each module's call in the graph.
    turns: dict[str, int] = field(default_factory=dict)
    #: For each module, the later consumers of its input and their positions.
    rereads: dict[str, dict[str, int]] = field(default_factory=dict)
    #: The chain that alone takes the first input.
    entry: list[str] = field(default_factory=list)
    #: The chain that produces the result.
    result: list[str] = field(default_factory=list)
    #: Modules that take the rows of a matrix, each with the chain that produces the matrix, or more dimensions.
    rows: list[tuple[str, list[str]]] = field(default_factory=list)
    #: Whether tensors are concatenated, which int8 can only do with a common scale.
    concatenates: bool = False
    #: Whether tracing succeeded. If not, each child is assumed to be called as a whole, in no particular order.
    is_traced: bool = True


def sequence(names: list[str]) -> ForwardTrace:
    """The trace of a ``forward`` that calls modules one after another and nothing else."""
    return ForwardTrace(
        chains=[names],
        whole=names,
        turns={name: i for i, name in enumerate(names, 1)},
        rereads={name: {} for name in names},
        entry=names,
        result=names,
    )


def intersect(first: ForwardTrace, second: ForwardTrace) -> ForwardTrace:
    """The facts that hold in both traces of one ``forward``; positions are those of the first."""
    parts = list(dict.fromkeys(first.parts + second.parts))
    links = {link for chain in second.chains for link in pairwise(chain)}
    chains: list[list[str]] = []
    for chain in first.chains:
        chains.append(chain[:1])
        for link in pairwise(chain):
            if link in links or not {*link} & {*second.whole, *second.parts}:
                chains[-1].append(link[1])
            else:
                chains.append([link[1]])
    return replace(
        first,
        chains=chains,
        whole=[name for name in dict.fromkeys(first.whole + second.whole) if name not in parts],
        parts=parts,
        pairs=[pair for pair in first.pairs if pair in second.pairs or pair[0] not in second.whole],
        rows=[pair for pair in first.rows if pair in second.rows or pair[0] not in second.whole],
        entry=first.entry if first.entry == second.entry else [],
        result=first.result if first.result == second.result else [],
        concatenates=first.concatenates or second.concatenates,
    )


def analyze(graph: torch.fx.Graph, ignores_shapes: bool = False) -> ForwardTrace:
    """How the modules that a graph calls feed one another.

    Args:
        graph: the graph, in which each module is one call.
        ignores_shapes: whether a tensor whose shape is read counts as unused there. Default: ``False``.
    """
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in nodes]
    accesses = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    parts = {name[:i]: None for name in accesses for i, letter in enumerate(name) if letter == "."}
    single_use = {node for node in nodes if targets.count(str(node.target)) == 1 and str(node.target) not in parts}

    def users(node: torch.fx.Node) -> list[torch.fx.Node]:
        return [user for user in node.users if not (ignores_shapes and _reads_shape(user, node))]

    def chain_to(node: Any) -> list[str]:
        names: list[str] = []
        while isinstance(node, torch.fx.Node) and node in single_use and len(users(node)) == 1:
            names.insert(0, str(node.target))
            node = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        return names

    chains: list[list[torch.fx.Node]] = []
    chained: set[torch.fx.Node] = set()
    for node in nodes:
        if node not in single_use or node in chained:
            continue
        chain = [node]
        while len(users(chain[-1])) == 1:
            (after,) = users(chain[-1])
            if after not in single_use or after.args != (chain[-1],) or after.kwargs:
                break
            chain.append(after)
        chained.update(chain)
        chains.append(chain)
    pairs = [
        (str(node.target), chain_to(node.args[0]))
        for node in nodes
        if node in single_use and len(node.args) == 2 and node.args[0] is not node.args[1]
    ]
    rows = [
        (str(node.target), chain_to(view.args[0]))
        for node in nodes
        for view in node.args
        if node in single_use and len(node.all_input_nodes) == 1 and _is_row_view(view) and users(view) == [node]
    ]
    first = next((node for node in graph.nodes if node.op == "placeholder"), None)
    heads = [c for c in chains if first is not None and users(first) == [c[0]] and c[0].args == (first,)]
    order = {node: i for i, node in enumerate(graph.nodes)}
    rereads = {
        str(node.target): {str(user.target): order[user] for user in node.args[0].users if order[user] > order[node]}
        for node in single_use
        if node.args and isinstance(node.args[0], torch.fx.Node)
    }
    return ForwardTrace(
        chains=[_targets(chain) for chain in chains],
        whole=[name for name in dict.fromkeys(targets) if name not in parts],
        parts=list(parts),
        pairs=pairs,
        rows=rows,
        turns={str(node.target): order[node] for node in single_use},
        rereads=rereads,
        entry=_targets(heads[0]) if heads else [],
        result=next(chain_to(node.args[0]) for node in graph.nodes if node.op == "output"),
        concatenates=any(node.op == "call_function" and node.target in CONCATENATION_OPS for node in graph.nodes),
    )


def _targets(chain: list[torch.fx.Node]) -> list[str]:
    return [str(node.target) for node in chain]


def _reads_shape(user: torch.fx.Node, node: torch.fx.Node) -> bool:
    """Whether ``user`` reads the shape of ``node`` and none of its values."""
    if user.target is getattr:
        return user.args[1] in _ATTRIBUTES
    return user.target in _QUERIES or (user.target in _LIKE and user.args[0] is not node)


def _is_row_view(view: Any) -> bool:
    """Whether a node is a matrix, or at least has all dimensions of its input, as rows of the last dimension."""
    if not isinstance(view, torch.fx.Node) or not view.args or view.kwargs:
        return False
    if view.target in ("flatten", torch.flatten):
        return len(view.args) == 3 and view.args[1] == 0 and view.args[2] not in (-1, 0)  # type: ignore[return-value]
    return view.target in ("reshape", "view") and len(view.args) == 3
