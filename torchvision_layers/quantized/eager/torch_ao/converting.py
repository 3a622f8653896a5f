"""Replaces prepared modules by int8 modules."""

from collections.abc import Callable
from typing import Any

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.qat
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as taoq
from torch import Tensor, nn
from torch.ao.quantization.quantization_mappings import get_default_static_quant_module_mappings

from ...layers.observed import Addition, Concatenation, DeQuantStub, Multiplication, QuantStub
from ..int8_arithmetic import Int8Addition, Int8AdditionOnQnnpack, Int8Concatenation, Int8Multiplication
from ..int8_modules import Int8ConvActivation2d, Int8ConvAddition2d, Int8ELU, Int8Linear, use_backend
from ..int8_pools import use_int8_pools
from ..patterns import mark_fused
from ..post_ops import ACTIVATIONS, PostOp
from ..wrappers import ObservedActivation
from . import ignore_deprecations
from .amx_convs import avoid_wrong_sizes
from .fusing import FusedReLU6, ReLU6AsReLU
from .grouped_convs import move_slow_convs
from .qnnpack_convs import follow_zero_points
from .training_norms import restore_torch_classes

__all__ = ["FLAT_KERNELS", "convert", "kernels_of_all_sizes"]


def convert(model: nn.Module, backend: str, post_ops: list[PostOp]) -> None:
    """Replaces prepared modules by int8 modules in place, with weights packed for ``backend``."""
    mapping = {
        **get_default_static_quant_module_mappings(),
        torch.ao.nn.qat.Conv1d: nnq.Conv1d,
        Addition: _ToArithmetic(backend),
        Multiplication: _ToArithmetic(backend),
        Concatenation: _ToArithmetic(backend),
        nn.ELU: _ToELU(),
        QuantStub: nnq.Quantize,
        DeQuantStub: nnq.DeQuantize,
    }
    linear: dict[Any, Any] = {nnq.Linear: _LinearPackedOnce, nniq.LinearReLU: _LinearReLUPackedOnce}
    if backend == "onednn":
        linear = {nnq.Linear: _UnpackedLinear, nniq.LinearReLU: _UnpackedLinearReLU}
    mapping = {source: linear.get(target, target) for source, target in mapping.items()}
    restore_torch_classes(model)
    with use_backend(backend), ignore_deprecations():
        for op in post_ops:
            _convert_post_op(model.get_submodule(op.parent), op, mapping)
        taoq.convert(model, mapping={**mapping, FusedReLU6: ReLU6AsReLU(mapping)}, inplace=True)
        if backend == "onednn":
            _replace_linear(model)
        for module in model.modules():
            if type(module) is nniq.ConvReLU2d and module.zero_point == 0:
                module.__class__ = ConvReLU2d
            elif isinstance(module, _PackedOnce):
                is_fused = isinstance(module, nniq.LinearReLU)
                module.__class__ = nniq.LinearReLU if is_fused else nnq.Linear  # type: ignore[assignment]
            elif isinstance(module, nnq.LeakyReLU):
                module.inplace = False  # the kernel does not write, and warns
            elif isinstance(module, (nnq.BatchNorm2d, nnq.BatchNorm3d)):  # TorchScript takes no vectors for numbers
                for name in ("scale", "zero_point"):
                    setattr(module, name, getattr(module, name).reshape(()))
        use_int8_pools(model)
        if backend == "x86" and "onednn" in torch.backends.quantized.supported_engines:
            move_slow_convs(model)
        if backend in ("x86", "onednn"):
            avoid_wrong_sizes(model)
        elif backend == "qnnpack":
            follow_zero_points(model)


def kernels_of_all_sizes(model: nn.Module, backend: str) -> list[nn.Module]:
    """The modules that hold packed weights of linear layers which FBGEMM runs: unlike oneDNN, it caches nothing."""
    if backend != "x86":
        return []
    return [module._packed_params for module in model.modules() if isinstance(module, nnq.Linear)]


class _ToArithmetic:
    """An entry in a mapping of torch.ao, used like a class."""

    def __init__(self, backend: str) -> None:
        self.addition = Int8AdditionOnQnnpack if backend == "qnnpack" else Int8Addition

    def from_float(self, observed: Addition | Multiplication) -> nn.Module:
        scale, zero_point = observed.activation_post_process.calculate_qparams()  # type: ignore[operator]
        if isinstance(observed, Addition):
            return self.addition(float(scale), int(zero_point), observed.relu, observed.broadcasts)
        if isinstance(observed, Concatenation):
            return Int8Concatenation(float(scale), int(zero_point), observed.dim)
        return Int8Multiplication(float(scale), int(zero_point))


class _ToELU:
    """An entry in a mapping of torch.ao, used like a class."""

    def from_float(self, observed: nn.ELU) -> nn.Module:
        scale, zero_point = observed.activation_post_process.calculate_qparams()  # type: ignore[operator, union-attr]
        return Int8ELU(float(scale), int(zero_point), observed.alpha)


class ConvReLU2d(nniq.ConvReLU2d):
    """Runs the kernel without ReLU, which starts faster: at a zero point of zero, saturation is the ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.quantized.conv2d(input, self._packed_params, self.scale, self.zero_point)


def _conv2d(conv: nnq.Conv2d, input: Tensor) -> Tensor:
    return torch.ops.quantized.conv2d.new(input, conv._packed_params, conv.scale, conv.zero_point)


#: The kernels of int8 modules, without the checks that the modules make around them.
FLAT_KERNELS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {nnq.Conv2d: _conv2d, ConvReLU2d: _conv2d}


class _Unpacked:
    """Mixed into a linear layer of torch, which would pack its weights twice although another module replaces it."""

    def __init__(self, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # type: ignore[arg-type]  # every class with this one is a module

    def set_weight_bias(self, w: Tensor, b: Tensor | None) -> None:
        self.weight_and_bias = w, b


class _UnpackedLinear(_Unpacked, nnq.Linear):
    pass


class _UnpackedLinearReLU(_Unpacked, nniq.LinearReLU):
    pass


class _PackedOnce:
    """Mixed into a linear layer of torch, which would pack a weight of zeros before its own."""

    def __init__(self, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__(1, 1, dtype=dtype)  # type: ignore[call-arg]
        self.in_features, self.out_features = in_features, out_features


class _LinearPackedOnce(_PackedOnce, nnq.Linear):
    pass


class _LinearReLUPackedOnce(_PackedOnce, nniq.LinearReLU):
    pass


def _replace_linear(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, (_UnpackedLinear, _UnpackedLinearReLU)):
            weight, bias = child.weight_and_bias
            qparams = float(child.scale), int(child.zero_point)
            linear = Int8Linear(weight, bias, [1, 1], [0, 0], [1, 1], 1, *qparams).eval()
            linear._forward_hooks, linear._forward_pre_hooks = child._forward_hooks, child._forward_pre_hooks
            setattr(module, name, linear)
        else:
            _replace_linear(child)


def _convert_post_op(parent: nn.Module, op: PostOp, mapping: dict[Any, Any]) -> None:
    convolution, operation = parent.get_submodule(op.convolution), parent.get_submodule(op.operation)
    convolution.activation_post_process = operation.activation_post_process
    int8_conv = mapping[type(convolution)].from_float(convolution)
    weight, bias = int8_conv._weight_bias()
    geometry = list(int8_conv.stride), list(int8_conv.padding), list(int8_conv.dilation), int8_conv.groups
    qparams = float(int8_conv.scale), int(int8_conv.zero_point)
    fused: nn.Module
    if isinstance(operation, ObservedActivation):
        activation = ACTIVATIONS[type(operation.module)]
        fused = Int8ConvActivation2d(weight, bias, *geometry, *qparams, activation)
    else:
        fused = Int8ConvAddition2d(weight, bias, *geometry, *qparams)
    parent.set_submodule(op.operation, fused.train(operation.training))
    parent.set_submodule(op.convolution, nn.Identity().train(convolution.training))
    mark_fused(parent, op.convolution, op.operation)
