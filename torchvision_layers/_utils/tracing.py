"""How a ``forward`` uses the modules below it, found by symbolic tracing."""

import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import nn
from torch.utils._pytree import tree_leaves

from .data_flow import ForwardTrace, analyze, intersect, sequence
from .proxy import RecordingProxy
from .side_effects import Effects, record_reads_, writable_copy

__all__ = [
    "Container",
    "Trace",
    "TraceCache",
    "check_argument",
    "check_items",
    "check_passed",
    "find_producer",
    "is_sequence",
    "shallow_graph",
    "trace_forward",
    "traced_graphs",
]


#: The class of a container of tensors, and its keys or indices.
Container = tuple[Callable[..., Any], tuple[Any, ...]]

#: Returns how a ``forward`` uses the modules below it.
Trace = Callable[[nn.Module], ForwardTrace]


class _ShallowTracer(torch.fx.Tracer):
    """Traces a single ``forward``: child modules are leaves, temporary modules such as slices are traced through."""

    def __init__(self, effects: Effects, containers: Mapping[str, Container] | None = None) -> None:
        super().__init__()
        self.effects, self.containers = effects, containers or {}
        #: Whether gradients and autocast were on for each operation.
        self.modes: set[tuple[bool, ...]] = set()

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        proxy = RecordingProxy(node, self)
        self.effects.watch(proxy)
        return proxy

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        function, arguments = super().create_args_for_root(*args, **kwargs)
        return function, [self._unpacked(argument) for argument in arguments]

    def _unpacked(self, argument: Any) -> Any:
        """A container of proxies instead of the proxy of a container, whose size a ``forward`` could not read."""
        if not isinstance(argument, torch.fx.Proxy) or argument.node.target not in self.containers:
            return argument
        kind, keys = self.containers[str(argument.node.target)]
        self.create_proxy("call_function", check_items, (argument.node.target, argument, list(keys)), {})
        items = [self.create_proxy("call_function", operator.getitem, (argument, key), {}) for key in keys]
        return kind(zip(keys, items, strict=True) if kind in (dict, OrderedDict) else items)

    def create_arg(self, a: Any) -> Any:
        if type(a) is OrderedDict:  # a graph would return a dict
            return self.create_node("call_function", OrderedDict, (super().create_arg(list(a.items())),), {})
        return super().create_arg(a)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> torch.fx.Node:
        if kind.startswith("call"):
            gradients = not self.root.training or torch.is_grad_enabled()  # they matter in training only
            self.modes.add((gradients, *map(torch.is_autocast_enabled, ("cpu", "cuda"))))
        return super().create_node(kind, *args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        is_traced = any(isinstance(argument, torch.fx.Proxy) for argument in tree_leaves((args, kwargs)))
        is_below = m in (self.submodule_paths or {}) or any(m is module for module in self.root.modules())
        if not is_traced or not is_below:  # another thread's call, or a slice
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


class TracedForward(NamedTuple):
    """A ``forward`` as a graph."""

    graph: torch.fx.Graph
    #: Effects besides the result, in phrases such as ``"sets self.last"``.
    effects: list[str]
    #: The names of the attributes whose values are constants of the graph.
    constants: frozenset[str]


def shallow_graph(
    module: nn.Module,
    training: bool,
    constants: Mapping[str, Any] | None = None,
    containers: Mapping[str, Container] | None = None,
) -> TracedForward | None:
    """The graph of ``module.forward`` with children as leaves; ``None`` if tracing fails.

    Args:
        module: the module, which is not changed.
        training: the mode to trace it in.
        constants: values of arguments, which the graph has as defaults and requires. Default: the default values of
            ``forward``, as far as a graph can hold them.
        containers: arguments that are lists, tuples or dicts of tensors. The graph requires the same keys.
    """
    constants = _defaults(module) if constants is None else dict(constants)
    copied = writable_copy(module)
    copied.training = training
    reads = record_reads_(copied)
    effects = Effects(copied)
    tracer = _ShallowTracer(effects, containers)
    try:
        with effects:
            graph = tracer.trace(copied, dict(constants))
    except Exception:  # a user's forward may raise anything when it meets a proxy
        return None
    if any(argument.graph is not graph for node in graph.nodes for argument in node.all_input_nodes):
        return None  # another forward left a proxy in an attribute
    parameters = dict(list(inspect.signature(type(module).forward).parameters.items())[1:])
    for node, name in zip((node for node in graph.nodes if node.op == "placeholder"), parameters, strict=True):
        if not str(node.target).startswith("*"):
            node.target = name  # torch.fx numbers the arguments that it specializes
        if name in constants:
            _fix_argument(node, constants[name], parameters[name].default)
        elif parameters[name].default is None:
            _add_check(node, check_passed, ())
    found = effects.found
    if len(tracer.modes) > 1:
        found.append("computes a part without gradients or under autocast")
    return TracedForward(graph, found, frozenset(reads))


def _fix_argument(node: torch.fx.Node, value: Any, default: Any) -> None:
    """Gives a placeholder its default back, and replaces torch's check of the value by one that can be traced."""
    for user in list(node.users):
        for check in list(user.users):
            node.graph.erase_node(check)
        node.graph.erase_node(user)
    node.args = (default,)
    _add_check(node, check_argument, (value,))


def _add_check(node: torch.fx.Node, check: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Calls ``check`` with the name and the value of a placeholder, and ``args``."""
    last = next(n for n in reversed(list(node.graph.nodes)) if n.op == "placeholder")
    with node.graph.inserting_after(last):
        node.graph.call_function(check, (str(node.target), node, *args))


def check_argument(name: str, value: Any, expected: Any) -> None:
    """Raises ``ValueError`` unless the argument called ``name`` has the value that a ``forward`` was traced with."""
    if not isinstance(value, torch.fx.Proxy) and (type(value), value) != (type(expected), expected):
        raise ValueError(f"{name} must be {expected!r}, as in the first call of this forward, got {value!r}")


def check_passed(name: str, value: Any) -> None:
    """Raises ``ValueError`` if the argument called ``name`` is missing, with which a ``forward`` was traced."""
    if value is None:
        raise ValueError(f"{name} must be passed, as in the first call of this forward, got None")


def check_items(name: str, value: Any, keys: list[Any]) -> None:
    """Raises ``ValueError`` unless the argument called ``name`` holds what a ``forward`` was traced with."""
    if not isinstance(value, torch.fx.Proxy):
        actual = list(value) if isinstance(value, dict) else list(range(len(value)))
        if actual != keys:
            raise ValueError(f"{name} must hold {keys}, as in the first call of this forward, got {actual}")


def trace_forward(module: nn.Module, ignores_shapes: bool = False) -> ForwardTrace:
    """Traces ``module.forward``; the result holds with and without gradients, and arguments that have defaults.

    If tracing fails, each child is assumed to be called as a whole, in no particular order.

    Args:
        module: the module, which is not changed.
        ignores_shapes: whether a tensor whose shape is read counts as unused there. Default: ``False``.
    """
    if next(module.children(), None) is None:
        return ForwardTrace()
    if is_sequence(module):
        return sequence(list(module._modules))
    try:
        traces = [analyze(graph, ignores_shapes) for _, graph in traced_graphs(module)]
    except Exception:  # a user's forward may raise anything when it meets a proxy
        return ForwardTrace(whole=[name for name, _ in module.named_children()], is_traced=False)
    return reduce(intersect, traces)


def traced_graphs(module: nn.Module) -> list[tuple[nn.Module, torch.fx.Graph]]:
    """The graphs of ``module.forward`` with and without gradients and arguments that have defaults.

    Each comes with the module that holds its constants. Raises whatever ``forward`` raises when it meets a proxy, and
    ``ValueError`` if it draws random numbers.
    """
    kinds: list[tuple[dict[str, Any], bool]] = [({}, True), ({}, False)]
    if defaults := _defaults(module):
        kinds.append((defaults, False))
    graphs = []
    for constants, has_gradients in kinds:
        copied = writable_copy(module)
        effects = Effects(copied)
        with torch.set_grad_enabled(has_gradients), effects:
            graphs.append((copied, _ShallowTracer(effects).trace(copied, constants)))
        if effects.is_random:
            raise ValueError("the forward draws random numbers")
    return graphs


class TraceCache(dict[nn.Module, ForwardTrace]):
    """The trace of each ``forward``, made when it is first needed."""

    def __missing__(self, module: nn.Module) -> ForwardTrace:
        self[module] = trace_forward(module)
        return self[module]


def is_sequence(module: nn.Module) -> bool:
    """Whether ``module`` is an ``nn.Sequential`` that calls each of its children once, which needs no tracing."""
    cls = type(module)
    if not issubclass(cls, nn.Sequential) or cls.forward is not nn.Sequential.forward:
        return False
    paths = {child: path for path, child in module.named_modules()}
    return cls.__iter__ is nn.Sequential.__iter__ and all(
        child is not None and paths[child] == name for name, child in module._modules.items()
    )


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Default values of ``forward``'s optional arguments, as far as a graph can hold them."""
    arguments = inspect.signature(type(module).forward).parameters.values()
    return {a.name: a.default for a in arguments if isinstance(a.default, (bool, float, int, str, type(None)))}


def find_producer(
    module: nn.Module,
    names: list[str],
    *,
    matches: Callable[[nn.Module], bool],
    is_identity: Callable[[nn.Module], bool],
    is_opaque: Callable[[nn.Module], bool],
    trace: Trace = trace_forward,
) -> str | None:
    """The name of the matching module whose output leaves a chain unchanged, at any depth; ``None`` if there is none.

    Args:
        module: the module that the names are relative to.
        names: a chain of modules, each feeding only the next.
        matches: whether a module is one to look for.
        is_identity: whether a module returns its input.
        is_opaque: whether to treat a module as a unit and not search inside it.
        trace: returns how a ``forward`` uses the modules below it.
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
            last, trace(last).result, matches=matches, is_identity=is_identity, is_opaque=is_opaque, trace=trace
        )
        return inner and f"{name}.{inner}"
    return None
