"""Which modules a ``forward`` calls, and which of them run straight after one another: found by tracing."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torch.fx
from torch import nn

__all__ = ["JOINS", "Calls", "at_end", "calls"]

#: Functions by which tensors are put side by side.
JOINS = {torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack}


@dataclass(frozen=True)
class Calls:
    """What one ``forward`` does with the modules below it."""

    #: Names of modules of which each feeds the next and nothing else.
    chains: list[list[str]] = field(default_factory=list)
    #: Names of the modules that are called as a whole, and in no other way.
    whole: list[str] = field(default_factory=list)
    #: Names of modules of which a part is called, or a parameter read.
    parts: list[str] = field(default_factory=list)
    #: Names of modules that take two different tensors, each with the modules through which the first came, as a chain.
    pairs: list[tuple[str, list[str]]] = field(default_factory=list)
    #: By name of a module, when it is called.
    turns: dict[str, int] = field(default_factory=dict)
    #: By name of a module, what takes the input of that module as well and later, and when.
    rereads: dict[str, dict[str, int]] = field(default_factory=dict)
    #: Names of the modules through which the result came, as a chain.
    result: list[str] = field(default_factory=list)
    #: Whether tensors are concatenated, for which int8 needs a common range.
    joins: bool = False
    #: Whether all this was seen. What cannot be traced is taken to call each child as a whole, in no order.
    is_traced: bool = True


class _ShallowTracer(torch.fx.Tracer):
    """Traces one ``forward`` and looks into no module below it, but through one that is made in passing (a slice)."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        is_traced = any(isinstance(argument, torch.fx.Proxy) for argument in (*args, *kwargs.values()))
        if not is_traced or not any(m is known for known in self.root.modules()):  # of another thread, or a slice
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def calls(module: nn.Module) -> Calls:
    """What ``module.forward`` calls, whether or not arguments with defaults are given.

    One that cannot be traced is taken to call each child as a whole, in no order.
    """
    if next(module.children(), None) is None:
        return Calls()
    tracer = _ShallowTracer()
    try:
        seen = _seen(tracer.trace(_copied(module)))
        if defaults := _defaults(module):
            seen = _common(seen, _seen(tracer.trace(_copied(module), defaults)))
    except Exception:  # forward is the user's, it may raise anything when it meets a proxy
        return Calls(whole=[name for name, _ in module.named_children()], is_traced=False)
    return seen


def _copied(module: nn.Module) -> nn.Module:
    """A copy to which a ``forward`` may write, of the same children and parameters."""
    copied = copy.copy(module)
    for name, value in vars(module).items():
        if type(value) in (dict, list, set):
            vars(copied)[name] = value.copy()
    copied._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    return copied


def _defaults(module: nn.Module) -> dict[str, Any]:
    """What a graph takes for the arguments of ``forward`` that may be left out."""
    arguments = inspect.signature(type(module).forward).parameters.values()
    return {a.name: a.default for a in arguments if isinstance(a.default, (bool, float, int, str, type(None)))}


def _common(first: Calls, second: Calls) -> Calls:
    """What holds for two graphs of one ``forward``; turns and what depends on them are those of the first."""
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
        result=first.result if first.result == second.result else [],
        joins=first.joins or second.joins,
    )


def _seen(graph: torch.fx.Graph) -> Calls:
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in nodes]
    touched = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    parts = {name[:i]: None for name in touched for i, letter in enumerate(name) if letter == "."}
    free = {node for node in nodes if targets.count(str(node.target)) == 1 and str(node.target) not in parts}

    def through(node: Any) -> list[str]:
        names: list[str] = []
        while isinstance(node, torch.fx.Node) and node in free and len(node.users) == 1:
            names.insert(0, str(node.target))
            node = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        return names

    chains: list[list[str]] = []
    taken: set[torch.fx.Node] = set()
    for node in nodes:
        if node not in free or node in taken:
            continue
        chain = [node]
        while len(chain[-1].users) == 1:
            after = next(iter(chain[-1].users))
            if after not in free or after.args != (chain[-1],) or after.kwargs:
                break
            chain.append(after)
        taken.update(chain)
        chains.append([str(link.target) for link in chain])
    pairs = [
        (str(node.target), through(node.args[0]))
        for node in nodes
        if node in free and len(node.args) == 2 and node.args[0] is not node.args[1]
    ]
    order = {node: i for i, node in enumerate(graph.nodes)}
    rereads = {
        str(node.target): {str(user.target): order[user] for user in node.args[0].users if order[user] > order[node]}
        for node in free
        if node.args and isinstance(node.args[0], torch.fx.Node)
    }
    turns = {str(node.target): order[node] for node in free}
    result = next(through(node.args[0]) for node in graph.nodes if node.op == "output")
    joins = any(node.op == "call_function" and node.target in JOINS for node in graph.nodes)
    whole = [name for name in dict.fromkeys(targets) if name not in parts]
    return Calls(chains, whole, list(parts), pairs, turns, rereads, result, joins)


def at_end(
    module: nn.Module,
    names: list[str],
    *,
    ends: Callable[[nn.Module], bool],
    passes: Callable[[nn.Module], bool],
    is_closed: Callable[[nn.Module], bool],
) -> str | None:
    """The name of the module whose output comes out of the last of these modules unchanged, perhaps from inside of it.

    Args:
        module: where the names hold.
        names: of modules of which each feeds only the next.
        ends: whether a module is one that is looked for.
        passes: whether a module gives its input back.
        is_closed: whether nothing inside of a module counts.
    """
    for name in reversed(names):
        last = module.get_submodule(name)
        if passes(last):
            continue
        if ends(last):
            return name
        if is_closed(last):
            return None
        inner = at_end(last, calls(last).result, ends=ends, passes=passes, is_closed=is_closed)
        return inner and f"{name}.{inner}"
    return None
