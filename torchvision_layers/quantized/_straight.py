"""Int8 containers that run as a straight line of kernels: for one image, the calls around kernels are a good part."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ._kernels import has_hooks
from ._twin import QuantizableLayer

__all__ = ["StraightSequential", "straighten", "trace_lines"]

#: What computes the same as the forward of a class, with less around it.
Kernels = Mapping[type[nn.Module], Callable[[Any, Tensor], Tensor]]


def straighten(model: nn.Module, kernels: Kernels) -> None:
    """Lets each ``nn.Sequential`` of an int8 model run as a straight line, in place."""
    for module in model.modules():
        if type(module) is nn.Sequential:
            module.__class__ = StraightSequential
            module.__dict__["kernels"] = kernels
    trace_lines(model)


def trace_lines(model: nn.Module) -> None:
    """Finds what the containers of a model that is straightened run; not when they run, when others may."""
    for module in model.modules():
        if isinstance(module, StraightSequential) and not any(has_hooks(below) for below in module.modules()):
            module.__dict__["line"] = _Line(module, module.__dict__["kernels"])


class StraightSequential(nn.Sequential):
    """Calls the kernels of all layers below it one after another.

    It runs layer by layer while a module among them has hooks, and once one was exchanged. The checks of the layers are
    left to the kernels; where one of these refuses, the layers are run to say why.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not self._is_straight(input):
            for module in self:
                input = module(input)
            return input
        return self._run(input)

    @torch.jit.unused
    def _is_straight(self, input: Tensor) -> bool:
        line = self.__dict__.get("line")
        return line is not None and line.is_current() and not isinstance(input, torch.fx.Proxy)

    @torch.jit.unused
    def _run(self, input: Tensor) -> Tensor:
        try:
            return self.__dict__["line"].run(input)
        except RuntimeError:
            return super().forward(input)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "line"}


class _Line:
    """The kernels that a container runs, and the modules that it had when they were found."""

    def __init__(self, root: nn.Module, kernels: Kernels) -> None:
        modules = list(root.modules())
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._hooks += [nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks]
        self._children = [(m._modules, tuple(m._modules.values())) for m in modules if m._modules]
        self.run = _straight(root, kernels)

    def is_current(self) -> bool:
        return not any(self._hooks) and all(tuple(now.values()) == before for now, before in self._children)


def _straight(root: nn.Module, kernels: Kernels) -> Callable[[Tensor], Tensor]:
    graph = _Tracer().trace(root)
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = root.get_submodule(str(node.target))
        if type(module) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
        else:
            with graph.inserting_before(node):
                called = graph.call_function(_calling(module, kernels.get(type(module))), node.args, node.kwargs)
            node.replace_all_uses_with(called)
        graph.erase_node(node)
    return torch.fx.GraphModule(root, graph).forward


def _calling(module: nn.Module, kernel: Callable[[Any, Tensor], Tensor] | None) -> Callable[..., Tensor]:
    def call(*inputs: Tensor) -> Tensor:
        return module(*inputs) if kernel is None else kernel(module, *inputs)

    return call


class _Tracer(torch.fx.Tracer):
    """Goes through containers and our twins, whose forwards have no effect but their result."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, QuantizableLayer) and type(m).__module__.startswith("torchvision_layers.")
        return not (isinstance(m, StraightSequential) or ours)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not any(isinstance(argument, torch.fx.Proxy) for argument in args):  # another thread's
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)
