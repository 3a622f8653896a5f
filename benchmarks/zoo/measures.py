"""Figures that are found without this package: noise, layers in float, and norms left behind a convolution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LayerCount", "decibels", "layers_of_graph", "layers_that_run", "norms_behind_convolutions", "outputs"]

PRODUCTS = {"linear", "addmm", "mm", "bmm", "baddbmm"}
LAYERS = {"convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
INT8_NAMESPACES = ("quantized", "onednn")

#: Numbers of convolutions and linear layers that ran in float and in int8.
LayerCount = tuple[int, int]


@torch.no_grad()
def outputs(model: nn.Module, batch: Tensor) -> list[Tensor]:
    """All tensors that the model returns."""
    return [leaf for leaf in tree_leaves(model(batch.clone())) if isinstance(leaf, Tensor)]


def decibels(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Signal over error, over all tensors together.

    Errors: ``ValueError`` if the tensors differ in number or shape, or are not finite.
    """
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in got]:
        raise ValueError(f"the outputs have shapes {_shapes(got)} instead of {_shapes(expected)}")
    signal = sum(tensor.double().square().sum() for tensor in expected)
    error = sum((a.double() - b.double()).square().sum() for a, b in zip(expected, got, strict=True))
    ratio = float(10 * torch.log10(torch.as_tensor(signal / error)))
    if ratio != ratio:
        raise ValueError("the outputs are not finite, or all zero")
    return min(ratio, 200.0)  # JSON has no infinity


@torch.no_grad()
def layers_that_run(model: nn.Module, batch: Tensor) -> LayerCount:
    """Convolutions and products with stored weights, as the dispatcher sees them."""
    with _LayerCounter(model) as counter:
        model(batch.clone())
    return counter.in_float, counter.in_int8


def layers_of_graph(model: nn.Module) -> LayerCount:
    """Convolutions and linear layers of a graph of torchao: int8 if both operands are dequantized."""
    in_float = in_int8 = 0
    for graph in (module for module in model.modules() if isinstance(module, fx.GraphModule)):
        for node in graph.graph.nodes:
            if node.op == "call_function" and _name(node.target) in (*LAYERS, "linear"):
                if all(_is_dequantize(operand) for operand in node.args[:2]):
                    in_int8 += 1
                else:
                    in_float += 1
    return in_float, in_int8


@torch.no_grad()
def norms_behind_convolutions(model: nn.Module, batch: Tensor) -> int:
    """Calls of batch norms, frozen and derived ones too, whose input is the output of a convolution."""
    count = 0

    def check(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal count
        count += recorder.is_output(args[0])

    norms = [module for module in model.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]
    handles = [norm.register_forward_pre_hook(check) for norm in norms]
    try:
        with _ConvolutionRecorder() as recorder:
            model(batch.clone())
    finally:
        for handle in handles:
            handle.remove()
    return count


class _LayerCounter(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.in_float = self.in_int8 = 0
        self.stored = {
            tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values() if _is_float(tensor)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = _name(func)
        if func.namespace in INT8_NAMESPACES:
            self.in_int8 += ("conv" in name or "linear" in name) and "prepack" not in name
        elif name == "_native_multi_head_attention":
            self.in_float += 2  # the projections of its inputs, and that of its output
        elif name in LAYERS or (name in PRODUCTS and any(self._is_stored(leaf) for leaf in tree_leaves(args))):
            self.in_float += 1
        return func(*args, **(kwargs or {}))

    def _is_stored(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.dim() > 1 and value.untyped_storage().data_ptr() in self.stored


class _ConvolutionRecorder(TorchDispatchMode):
    """Keeps the outputs of convolutions, so that no later tensor gets the memory of one."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[Tensor, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _name(func) in LAYERS:
            self.outputs[result.data_ptr()] = (result, result._version)
        return result

    def is_output(self, tensor: Tensor) -> bool:
        """Whether the tensor is such an output that no operation in place has changed."""
        output, version = self.outputs.get(tensor.data_ptr(), (None, 0))
        return output is not None and output.shape == tensor.shape and output._version == version


def _name(target: Any) -> str:
    return str(getattr(target, "_opname", None) or getattr(target, "__name__", target)).partition(".")[0]


def _is_float(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.is_quantized


def _is_dequantize(operand: object) -> bool:
    return isinstance(operand, fx.Node) and _name(operand.target).startswith("dequantize")


def _shapes(tensors: Sequence[Tensor]) -> list[list[int]]:
    return [list(tensor.shape) for tensor in tensors]
