"""Int8 convolutions that run in float for the sizes at which oneDNN's kernels on AMX are wrong."""

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

from ...._utils.amx import LIMIT, Geometry, is_right, may_be_wrong, uses_amx
from ..int8_modules import Int8ConvActivation2d, Int8ConvAddition2d, computed_in_float
from .qnnpack_convs import FollowsZeroPoint, check_scriptable, checking_class

__all__ = ["avoid_wrong_sizes", "without_checks"]

_OWN = (Int8ConvActivation2d, Int8ConvAddition2d)
_WITH_RELU = (nniq.ConvReLU1d, nniq.ConvReLU2d, nniq.ConvReLU3d)
#: The last shape for which the kernel of a convolution was wrong. TorchScript would not accept it as an attribute.
_wrong_shapes = WeakKeyDictionary[Any, list[int]]()


def avoid_wrong_sizes(model: nn.Module) -> None:
    """Lets convolutions look at the sizes of their inputs, in place, if their kernels may be wrong for some."""
    if not uses_amx():
        return
    for module in model.modules():
        is_conv = isinstance(module, (nnq.Conv1d, nnq.Conv2d, nnq.Conv3d, *_OWN))
        if is_conv and may_be_wrong(_geometry(module)):
            module.__class__ = checking_class(_ChecksSizes, type(module))  # type: ignore[arg-type]


def without_checks(model: nn.Module) -> nn.Module:
    """``model``, or a copy for TorchScript, which cannot check inputs.

    Errors: ``RuntimeError`` if a kernel would be wrong for an input that the model met.
    """
    checking = [path for path, module in model.named_modules() if isinstance(module, (_ChecksSizes, FollowsZeroPoint))]
    for path in checking:
        check_scriptable(path, model.get_submodule(path))
        shape = _wrong_shapes.get(model.get_submodule(path))
        if shape is not None:
            raise RuntimeError(
                f"oneDNN's kernel for {path} is wrong on AMX for inputs of shape {shape}, which "
                f"TorchScript cannot avoid: trace the model, or set {LIMIT} in the environment before Python starts"
            )
    if not checking:
        return model
    model = copy.deepcopy(model)
    for path in checking:
        module: Any = model.get_submodule(path)
        module.__class__ = module.unchecked
    return model


class _ChecksSizes:
    """A mixin that computes in float where the int8 kernel is wrong."""

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:
        if is_right(_geometry(self), input.shape, torch.uint8):
            return super().forward(input, *others)  # type: ignore[misc]
        _wrong_shapes[self] = [*input.shape]
        return _in_float(self, input, *others)


def _geometry(module: Any) -> Geometry:
    channels, filters, kernel = _sizes(module)
    stride, padding, dilation = map(tuple, (module.stride, module.padding, module.dilation))
    return Geometry(channels, filters, kernel, stride, padding, dilation, module.groups)


def _sizes(module: Any) -> tuple[int, int, tuple[int, ...]]:
    if isinstance(module, _OWN):
        filters, channels, *kernel = module.weight.shape
        return channels * module.groups, filters, tuple(kernel)
    return module.in_channels, module.out_channels, tuple(module.kernel_size)


def _in_float(module: Any, *inputs: Tensor) -> Tensor:
    output = computed_in_float(module, [input.dequantize() for input in inputs])
    assert output is not None  # every convolution has a weight
    if isinstance(module, _WITH_RELU):
        output.relu_()
    return torch.quantize_per_tensor(output, module.scale, module.zero_point, torch.quint8)
