"""How each ``forward`` uses the modules below it, recorded on a run, for those that cannot be traced."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import getitem
from typing import Any

import torch.fx
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .data_flow import ForwardTrace, analyze, intersect

__all__ = ["record_forwards"]


def record_forwards(model: nn.Module, paths: set[str], run: Callable[[], object]) -> dict[str, ForwardTrace]:
    """How the modules at ``paths`` use the modules below them in all calls of a run, as far as they are called.

    Children that they do not call count as called as a whole, as in :func:`.tracing.trace_forward`.

    Args:
        model: the model that ``run`` calls.
        paths: paths of modules in ``model``.
        run: runs the model.
    """
    recorder = _Recorder({model.get_submodule(path) for path in paths})
    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(recorder.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(recorder.leave, with_kwargs=True))
    try:
        with recorder:
            run()
    finally:
        for handle in handles:
            handle.remove()
    traces = {}
    for path in paths:
        module = model.get_submodule(path)
        if trace := recorder.traces.get(module):
            whole = [*trace.whole, *(name for name, _ in module.named_children() if name not in trace.whole)]
            whole = [name for name in whole if name not in trace.parts]
            traces[path] = replace(trace, whole=whole, is_traced=False)
    return traces


@dataclass
class _Call:
    """A call that runs, of a module that is recorded or not."""

    module: nn.Module
    #: The names of modules and tensors below the module.
    names: dict[int, str]
    graph: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    nodes: dict[int, torch.fx.Node] = field(default_factory=dict)
    #: All tensors of ``nodes``, so that no other gets the id of one.
    tensors: list[Tensor] = field(default_factory=list)

    def node_of(self, tensor: Tensor) -> torch.fx.Node:
        """The node of a tensor, which is an input or a parameter if it has none yet."""
        if id(tensor) not in self.nodes:
            name = self.names.get(id(tensor))
            kind = ("placeholder", f"input_{len(self.nodes)}") if name is None else ("get_attr", name)
            self.nodes[id(tensor)] = self.graph.create_node(*kind)
            self.tensors.append(tensor)
        return self.nodes[id(tensor)]

    def add(self, kind: str, target: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Adds a node for a call."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_plain = len(args) == 1 and not kwargs and len(inputs) == 1 and inputs[0] is args[0]
        others: dict[str, Any] = {} if is_plain else {"others": None}
        node = self.graph.create_node(kind, target, tuple(map(self.node_of, inputs)), others)
        for i, leaf in enumerate(tree_leaves(output)):
            if isinstance(leaf, Tensor):
                self.nodes[id(leaf)] = node if leaf is output else self.graph.call_function(getitem, (node, i))
                self.tensors.append(leaf)

    def finish(self, output: Any) -> ForwardTrace:
        """How the call used the modules."""
        results = [self.node_of(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        return analyze(self.graph)


class _Recorder(TorchDispatchMode):
    """Records operations below the modules, too: whatever computes with a tensor uses it."""

    def __init__(self, modules: set[nn.Module]) -> None:
        super().__init__()
        self.modules = modules
        self.traces: dict[nn.Module, ForwardTrace] = {}
        self._calls: list[_Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._calls and self._calls[-1].module in self.modules:
            self._calls[-1].add("call_function", func, (args, None), kwargs, output)
        return output

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names: dict[int, str] = {}
        if module in self.modules:
            names = {id(child): name for name, child in module.named_modules() if name}
            names |= {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
        call = _Call(module, names)
        for leaf in args:
            if isinstance(leaf, Tensor):
                call.node_of(leaf)  # the first placeholder is the first input
        self._calls.append(call)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = self._calls.pop()
        if module in self.modules:
            trace = call.finish(output)
            before = self.traces.get(module)
            self.traces[module] = trace if before is None else intersect(before, trace)
        caller = self._calls[-1] if self._calls else None
        if caller is not None and caller.module in self.modules:
            name = caller.names.get(id(module))
            kind = "call_function" if name is None else "call_module"
            caller.add(kind, type(module) if name is None else name, args, kwargs, output)
