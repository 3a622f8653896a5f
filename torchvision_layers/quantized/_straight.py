"""Int8 containers that run as a straight line of kernels: for one image, the calls around kernels are a good part."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ._twin import QuantizableLayer

__all__ = ["StraightSequential", "straighten"]

#: What computes the same as the forward of a class, with less around it.
Kernels = Mapping[type[nn.Module], Callable[[Any, Tensor], Tensor]]


def straighten(model: nn.Module, kernels: Kernels) -> None:
    """Lets each ``nn.Sequential`` of an int8 model run as a straight line, in place."""
    for module in model.modules():
        if type(module) is nn.Sequential:
            module.__class__ = StraightSequential
            module.__dict__["kernels"] = kernels


class StraightSequential(nn.Sequential):
    """Calls the kernels of all layers below it one after another, unless a module among them has hooks.

    The checks of the layers are left to the kernels; where one of these refuses, the layers are run to say why.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not self._is_straight(input):
            for module in self:
                input = module(input)
            return input
        return self._run(input)

    @torch.jit.unused
    def _is_straight(self, input: Tensor) -> bool:
        if isinstance(input, torch.fx.Proxy) or "kernels" not in self.__dict__:  # a slice has none
            return False
        line = self.__dict__.get("line")
        if line is None or not line.is_current():
            line = self.__dict__["line"] = _Line(self)
        if any(line.hooks):
            return False
        if line.run is None:
            line.run = _straight(self, self.__dict__["kernels"])
        return True

    @torch.jit.unused
    def _run(self, input: Tensor) -> Tensor:
        try:
            return self.__dict__["line"].run(input)
        except RuntimeError:
            return super().forward(input)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "line"}


class _Line:
    """The kernels that a container runs, once they were asked for, and the modules that it had then."""

    def __init__(self, root: nn.Module) -> None:
        modules = list(root.modules())
        self.hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._children = [(m._modules, tuple(m._modules.values())) for m in modules if m._modules]
        self.run: Callable[[Tensor], Tensor] | None = None

    def is_current(self) -> bool:
        return all(tuple(children.values()) == before for children, before in self._children)


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
