"""Which child modules a ``forward`` calls, and which of them feed one another, found by symbolic tracing."""

import copy
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.utils._pytree import tree_leaves

__all__ = ["CONCATENATION_OPS", "ForwardTrace", "check_argument", "find_producer", "shallow_graph", "trace_forward"]

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
    #: Whether tensors are concatenated, which int8 can only do with a common scale.
    concatenates: bool = False
    #: Whether tracing succeeded. If not, each child is assumed to be called as a whole, in no particular order.
    is_traced: bool = True


class _Proxy(torch.fx.Proxy):
    """A proxy that records assignments such as ``+=``; those of torch.fx record ``+``, or cannot be assigned to."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _in_place_method(name: str) -> Callable[[_Proxy, Any], torch.fx.Proxy]:
    target = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", target, (self, other), {})


for _name in ("iadd", "iand", "ifloordiv", "imatmul", "imod", "imul", "ior", "ipow", "isub", "itruediv", "ixor"):
    setattr(_Proxy, f"__{_name}__", _in_place_method(_name))


class _ShallowTracer(torch.fx.Tracer):
    """Traces a single ``forward``: child modules are leaves, temporary modules such as slices are traced through."""

    def __init__(self) -> None:
        super().__init__()
        #: Whether gradients and autocast were on for each operation.
        self.modes: set[tuple[bool, bool]] = set()

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> torch.fx.Node:
        if kind.startswith("call"):
            gradients = not self.root.training or torch.is_grad_enabled()  # they matter in training only
            self.modes.add((gradients, torch.is_autocast_enabled("cpu")))
        return super().create_node(kind, *args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        is_traced = any(isinstance(argument, torch.fx.Proxy) for argument in tree_leaves((args, kwargs)))
        if not is_traced or not any(m is module for module in self.root.modules()):  # another thread's call, or a slice
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def shallow_graph(
    module: nn.Module, training: bool, constants: Mapping[str, Any] | None = None
) -> tuple[torch.fx.Graph, list[str]] | None:
    """The graph of ``module.forward`` with children as leaves, and the effects that the graph lacks.

    ``None`` if tracing fails. Effects are phrases such as ``"sets self.last"``.

    Args:
        module: the module, which is not changed.
        training: the mode to trace it in.
        constants: values of arguments, which the graph has as defaults and requires. Default: the default values of
            ``forward``, as far as a graph can hold them.
    """
    constants = _defaults(module) if constants is None else dict(constants)
    copied = _writable_copy(module)
    copied.training = training
    before = _attributes(copied)
    tracer = _ShallowTracer()
    try:
        graph = tracer.trace(copied, dict(constants))
    except Exception:  # a user's forward may raise anything when it meets a proxy
        return None
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    for node, name in zip((node for node in graph.nodes if node.op == "placeholder"), names, strict=True):
        if not str(node.target).startswith("*"):
            node.target = name  # torch.fx numbers the arguments that it specializes
        if name in constants:
            _fix_argument(node, constants[name])
    after = _attributes(copied)
    effects = [f"sets self.{name}" for name, value in after.items() if before.get(name) != value]
    if len(tracer.modes) > 1:
        effects.append("computes a part without gradients or under autocast")
    return graph, effects


def _fix_argument(node: torch.fx.Node, value: Any) -> None:
    """Makes ``value`` the default of a placeholder, and replaces torch's check of it by one that can be traced."""
    for user in list(node.users):
        for check in list(user.users):
            node.graph.erase_node(check)
        node.graph.erase_node(user)
    node.args = (value,)
    last = next(n for n in reversed(list(node.graph.nodes)) if n.op == "placeholder")
    with node.graph.inserting_after(last):
        node.graph.call_function(check_argument, (str(node.target), node, value))


def check_argument(name: str, value: Any, expected: Any) -> None:
    """Raises ``ValueError`` unless the argument called ``name`` has the value that a ``forward`` was traced with."""
    if not isinstance(value, torch.fx.Proxy) and (type(value), value) != (type(expected), expected):
        raise ValueError(f"{name} must be {expected!r}, as in the first call of this forward, got {value!r}")


def _attributes(module: nn.Module) -> dict[str, object]:
    """The identity of each attribute of a module, and of the items of lists and dicts."""
    return {
        name: [*map(id, value.values() if isinstance(value, dict) else value)]
        if type(value) in (dict, list)
        else id(value)
        for name, value in vars(module).items()
        if not name.startswith("_tensor_constant")
    }


def trace_forward(module: nn.Module) -> ForwardTrace:
    """Traces ``module.forward``; the result holds whether or not arguments with defaults are passed.

    If tracing fails, each child is assumed to be called as a whole, in no particular order.
    """
    if next(module.children(), None) is None:
        return ForwardTrace()
    tracer = _ShallowTracer()
    try:
        trace = _analyze(tracer.trace(_writable_copy(module)))
        if defaults := _defaults(module):
            trace = _intersect(trace, _analyze(tracer.trace(_writable_copy(module), defaults)))
    except Exception:  # a user's forward may raise anything when it meets a proxy
        return ForwardTrace(whole=[name for name, _ in module.named_children()], is_traced=False)
    return trace


def _writable_copy(module: nn.Module) -> nn.Module:
    """A copy with the same children and parameters, whose attributes a ``forward`` may write."""
    copied = copy.copy(module)
    for name, value in vars(module).items():
        if type(value) in (dict, list, set):
            vars(copied)[name] = value.copy()
    copied._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    return copied


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Default values of ``forward``'s optional arguments, as far as a graph can hold them."""
    arguments = inspect.signature(type(module).forward).parameters.values()
    return {a.name: a.default for a in arguments if isinstance(a.default, (bool, float, int, str, type(None)))}


def _intersect(first: ForwardTrace, second: ForwardTrace) -> ForwardTrace:
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
        entry=first.entry if first.entry == second.entry else [],
        result=first.result if first.result == second.result else [],
        concatenates=first.concatenates or second.concatenates,
    )


def _analyze(graph: torch.fx.Graph) -> ForwardTrace:
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in nodes]
    accesses = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    parts = {name[:i]: None for name in accesses for i, letter in enumerate(name) if letter == "."}
    single_use = {node for node in nodes if targets.count(str(node.target)) == 1 and str(node.target) not in parts}

    def chain_to(node: Any) -> list[str]:
        names: list[str] = []
        while isinstance(node, torch.fx.Node) and node in single_use and len(node.users) == 1:
            names.insert(0, str(node.target))
            node = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        return names

    chains: list[list[torch.fx.Node]] = []
    chained: set[torch.fx.Node] = set()
    for node in nodes:
        if node not in single_use or node in chained:
            continue
        chain = [node]
        while len(chain[-1].users) == 1:
            after = next(iter(chain[-1].users))
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
    first = next((node for node in graph.nodes if node.op == "placeholder"), None)
    heads = [c for c in chains if first is not None and [*first.users] == [c[0]] and c[0].args == (first,)]
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
        turns={str(node.target): order[node] for node in single_use},
        rereads=rereads,
        entry=_targets(heads[0]) if heads else [],
        result=next(chain_to(node.args[0]) for node in graph.nodes if node.op == "output"),
        concatenates=any(node.op == "call_function" and node.target in CONCATENATION_OPS for node in graph.nodes),
    )


def _targets(chain: list[torch.fx.Node]) -> list[str]:
    return [str(node.target) for node in chain]


def find_producer(
    module: nn.Module,
    names: list[str],
    *,
    matches: Callable[[nn.Module], bool],
    is_identity: Callable[[nn.Module], bool],
    is_opaque: Callable[[nn.Module], bool],
) -> str | None:
    """The name of the matching module whose output leaves a chain unchanged, at any depth; ``None`` if there is none.

    Args:
        module: the module that the names are relative to.
        names: a chain of modules, each feeding only the next.
        matches: whether a module is one to look for.
        is_identity: whether a module returns its input.
        is_opaque: whether to treat a module as a unit and not search inside it.
    """
    for name in reversed(names):
        last = module.get_submodule(name)
        if is_identity(last):
            continue
        if matches(last):
            return name
        if is_opaque(last):
            return None
        inner = find_producer(
            last, trace_forward(last).result, matches=matches, is_identity=is_identity, is_opaque=is_opaque
        )
        return inner and f"{name}.{inner}"
    return None
