"""Int8 containers that run as a flat sequence of kernels, since Python call overhead matters at batch size 1."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..._utils.modules import has_hooks
from ..._utils.safe_names import generated_forward
from ..layers.base import QuantizableLayer

__all__ = ["FlatSequential", "flatten_sequentials", "trace_flat_sequentials"]

#: For each class, a function that computes the same as its ``forward`` with less overhead. A class may name another as
#: its ``kernel_class``. These classes are pickled with a model, so they can be imported.
Kernels = Mapping[type[nn.Module], Callable[[Any, Tensor], Tensor]]


def flatten_sequentials(model: nn.Module, kernels: Kernels) -> None:
    """Makes each ``nn.Sequential`` of an int8 model a :class:`FlatSequential`, in place."""
    for module in model.modules():
        if type(module) is nn.Sequential:
            module.__class__ = FlatSequential
            module.__dict__["kernels"] = kernels
    trace_flat_sequentials(model)


def trace_flat_sequentials(model: nn.Module) -> None:
    """Traces every :class:`FlatSequential` of a model ahead of its runs, which may happen in several threads."""
    for module in model.modules():
        if isinstance(module, FlatSequential) and not any(has_hooks(m) for m in module.modules()):
            module.__dict__["flat"] = _FlatForward(module, module.__dict__["kernels"])


class FlatSequential(nn.Sequential):
    """Calls the kernels of all layers below it one after another.

    It runs layer by layer while any of its modules has hooks, or once a module was replaced. The kernels do the checks
    that the layers would do; if one raises an error, the layers run again to raise theirs.
    """

    takes_int8 = True

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not self._can_run_flat(input):
            for module in self:
                input = module(input)
            return input
        return self._run_flat(input)

    @torch.jit.unused
    def _can_run_flat(self, input: Tensor) -> bool:
        flat = self.__dict__.get("flat")
        return flat is not None and flat.is_current() and not isinstance(input, torch.fx.Proxy)

    @torch.jit.unused
    def _run_flat(self, input: Tensor) -> Tensor:
        try:
            return self.__dict__["flat"].run(input)
        except RuntimeError:
            return super().forward(input)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "flat"}


class _FlatForward:
    """The kernels that a container runs, and the modules that it had when they were traced."""

    def __init__(self, root: nn.Module, kernels: Kernels) -> None:
        modules = list(root.modules())
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._hooks += [nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks]
        self._children = [(m._modules, tuple(m._modules.values())) for m in modules if m._modules]
        self.run = _flat_forward(root, kernels)

    def is_current(self) -> bool:
        return not any(self._hooks) and all(tuple(now.values()) == before for now, before in self._children)


def _flat_forward(root: nn.Module, kernels: Kernels) -> Callable[[Tensor], Tensor]:
    graph = _Tracer().trace(root)
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = root.get_submodule(str(node.target))
        if type(module) is nn.Identity:
            node.replace_all_uses_with([*node.args, *node.kwargs.values()][0])
        else:
            kernel = kernels.get(getattr(type(module), "kernel_class", type(module)))
            with graph.inserting_before(node):
                call = graph.call_function(_caller(module, kernel), node.args, node.kwargs)
            node.replace_all_uses_with(call)
        graph.erase_node(node)
    return partial(generated_forward(graph), root)


def _caller(module: nn.Module, kernel: Callable[[Any, Tensor], Tensor] | None) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs) if kernel is None else kernel(module, *args, **kwargs)

    return call


class _Tracer(torch.fx.Tracer):
    """Traces through containers, the twins of this package and rewritten forwards, which have no side effects."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_twin = isinstance(m, QuantizableLayer) and type(m).__module__.startswith("torchvision_layers.")
        return not (isinstance(m, FlatSequential) or is_twin or getattr(type(m), "only_calls_children", False))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        is_traced = any(isinstance(argument, torch.fx.Proxy) for argument in tree_leaves((args, kwargs)))
        if not is_traced:  # another thread's call
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)
