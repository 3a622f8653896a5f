"""The eager engine: everything that touches ``torch.ao``, which is deprecated and will go."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as taoq
import torchvision.ops
from torch import Tensor, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.quantization.quantization_mappings import (
    get_default_qat_module_mappings,
    get_default_static_quant_module_mappings,
)

from ._fusing import NORMS, mark_fused
from ._int8 import (
    Int8Addition,
    Int8ConvActivation2d,
    Int8ConvAddition2d,
    Int8Linear,
    Int8Multiplication,
    largest_pairs,
    running_on,
)
from ._kernels import Kernel, is_unit, kernel, make_padding_numeric
from ._observed import Addition, DeQuantStub, FloatIsland, Multiplication, Observed, ObservedActivation, QuantStub
from ._post_ops import ACTIVATIONS, PostOp, post_ops, worthwhile
from ._straight import straighten

__all__ = ["BACKENDS", "convert", "freeze", "fuse_group", "is_fused_for_training", "prepare", "unobserved"]

BACKENDS = ("x86", "onednn", "qnnpack")

# Alone: its kernels take every tensor for one in rows of pixels, which convolutions do not give.
_NOT_ON_QNNPACK = (nn.Hardtanh, nn.ReLU6)


# Fusing

_WITH_RELU: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Conv1d: nni.ConvReLU1d,
    nn.Conv2d: nni.ConvReLU2d,
    nn.Conv3d: nni.ConvReLU3d,
    nn.Linear: nni.LinearReLU,
}
_WITH_NORM_AND_RELU: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Conv1d: nni.ConvBnReLU1d,
    nn.Conv2d: nni.ConvBnReLU2d,
    nn.Conv3d: nni.ConvBnReLU3d,
}


class FusedReLU6(_FusedModule):
    """A convolution or projection, perhaps a batch norm, and a ReLU6, to become one int8 kernel.

    Int8 has a kernel with ReLU but none with ReLU6. The output is quantized over a range that ends at 6, or lower where
    calibration never reaches 6; saturation is the ReLU6, nothing is replaced or approximated.
    """

    def with_relu(self) -> nn.Module:
        """The same with ReLU in place of ReLU6, for torch's own conversions."""
        parts = [part for part in self if type(part) in NORMS or type(part) in NORMS.values()]
        fused = (_WITH_RELU if len(parts) == 1 else _WITH_NORM_AND_RELU)[type(parts[0])]
        other = fused(*parts, nn.ReLU()).train(self.training)
        other.qconfig = self.qconfig
        if hasattr(self, "activation_post_process"):
            other.activation_post_process = self.activation_post_process
        return other


class _ThroughReLU:
    """Stands in a table of torch.ao, where a class would: a ReLU6 goes the way of the ReLU in that table."""

    def __init__(self, table: dict[Callable[..., Any], Any]) -> None:
        self.table = table

    def from_float(self, fused: FusedReLU6) -> nn.Module:
        other = fused.with_relu()
        return self.table[type(other)].from_float(other)


def fuse_group(parent: nn.Module, names: list[str], is_qat: bool) -> None:
    """Fuses a convolution or projection, perhaps its norm, and perhaps its ReLU or ReLU6, in place."""
    modules = [parent.get_submodule(name) for name in names]
    if isinstance(modules[1], torchvision.ops.FrozenBatchNorm2d):
        # Nothing of it changes in training either, so it is folded in both modes.
        _fold_frozen(parent, names[0], names[1])
        if len(names) == 3:
            fuse_group(parent, [names[0], names[2]], is_qat)
        return
    if len({module.training for module in modules}) != 1:
        raise ValueError(f"{', '.join(names)} must all be in training or all in eval mode to be fused")
    if modules[0].training and not is_qat:
        raise ValueError(f"is_qat must be True to fuse {', '.join(names)} in training mode; call eval() to fold them")

    if len(names) == 3 and type(modules[0]) is nn.Linear:
        # torch has no Linear-BatchNorm-ReLU: two steps in eval; in training the ReLU stays by itself.
        fuse_group(parent, names[:2], is_qat)
        if not is_qat:
            fuse_group(parent, [names[0], names[2]], is_qat)
        return
    if type(modules[-1]) is nn.ReLU6:
        if len(names) == 3 and not is_qat:
            fuse_group(parent, names[:2], is_qat)
            modules = [parent.get_submodule(names[0]), modules[-1]]
        fused = FusedReLU6(*modules).train(modules[-1].training)
        parent.set_submodule(names[0], fused)
        for name in names[1:]:
            parent.set_submodule(name, nn.Identity().train(fused.training))
    else:
        (taoq.fuse_modules_qat if is_qat else taoq.fuse_modules)(parent, names, inplace=True)
    for name in names[1:]:
        mark_fused(parent, name, names[0])


def _fold_frozen(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = copy.deepcopy(parent.get_submodule(conv_name)), parent.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, torchvision.ops.FrozenBatchNorm2d)
    conv.weight, conv.bias = nn.utils.fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    parent.set_submodule(conv_name, conv)
    parent.set_submodule(norm_name, nn.Identity().train(norm.training))
    mark_fused(parent, norm_name, conv_name)


# Preparing and converting


def _range(is_qat: bool) -> object:
    """Observes the range of an activation in all eight bits."""
    if is_qat:
        observer = taoq.MovingAverageMinMaxObserver
        return taoq.FusedMovingAvgObsFakeQuantize.with_args(observer=observer, quant_min=0, quant_max=255)
    return taoq.HistogramObserver.with_args(reduce_range=False)


class _UpToSix(taoq.MovingAverageMinMaxObserver):
    """Observes what ReLU6 would let through."""

    def forward(self, x_orig: Tensor) -> Tensor:
        super().forward(x_orig.clamp(max=6.0))
        return x_orig


def _range_up_to_six(is_qat: bool) -> object:
    """A range that ends at 6, or at the largest value where none reaches 6, and never above."""
    if is_qat:
        return taoq.FakeQuantize.with_args(observer=_UpToSix, quant_min=0, quant_max=255)
    return taoq.MinMaxObserver.with_args(dtype=torch.quint8)


class _PairRange(taoq.PerChannelMinMaxObserver):
    """A range of each channel by which no two of its weights have a sum of more than 128 in magnitude."""

    def forward(self, x_orig: Tensor) -> Tensor:
        pair = largest_pairs(x_orig.detach())
        self.min_val, self.max_val = -pair, pair
        return x_orig


def _weights(backend: str, is_qat: bool) -> object:
    """One scale a channel; on x86 such that no sum of two products overflows.

    Without VNNI instructions x86 adds two products of eight bits in sixteen, which can overflow. torch shortens the
    activations to seven bits against that. Pairs of weights whose sum is small enough prevent it as well
    (255 * 128 < 2 ** 15), lose less, and leave saturation at 255, by which ReLU6 is exact. VNNI needs neither: that is
    the onednn backend.

    The range has as many steps below zero as above. With one more below, as torch has it by default, the largest weight
    of each channel falls between two steps and always goes to the lower: all outputs shift to one side.
    """
    shared = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric, "quant_min": -127, "quant_max": 127}
    observer: type[taoq.ObserverBase]
    if backend == "x86":
        observer = _PairRange
    else:
        observer = taoq.MovingAveragePerChannelMinMaxObserver if is_qat else taoq.PerChannelMinMaxObserver
    # Fake quantization that is not fused: that kernel trains in steps that differ from those of the conversion.
    return taoq.FakeQuantize.with_args(observer=observer, **shared) if is_qat else observer.with_args(**shared)


def prepare(model: nn.Module, backend: str, is_qat: bool, example: Tensor | None = None) -> list[PostOp]:
    """Puts islands around what int8 cannot run, and observers (in training fake quantization) everywhere else.

    Gives the post-operations that :func:`convert` is to put into convolutions: all, or those that are worthwhile for
    images such as the ``example``.
    """
    found = post_ops(model) if backend == "onednn" else []
    if example is not None:
        found = worthwhile(model, found, example)
    for op in found:
        parent = model.get_submodule(op.parent)
        activation = parent.get_submodule(op.operation)
        if type(activation) in ACTIVATIONS:
            parent.set_submodule(op.operation, ObservedActivation(activation))
    _add_islands(model, backend)
    make_padding_numeric(model)  # int8 convolutions take nothing else
    weight = _weights(backend, is_qat)
    model.qconfig = taoq.QConfig(activation=_range(is_qat), weight=weight)  # type: ignore[assignment]
    islands = [module for module in model.modules() if isinstance(module, FloatIsland)]
    in_islands = {inner for island in islands for inner in island.module.modules()}
    for module in model.modules():
        if isinstance(module, FusedReLU6) and module not in in_islands:
            module.qconfig = taoq.QConfig(activation=_range_up_to_six(is_qat), weight=weight)  # type: ignore[assignment]
    for op in found:  # between the two, int8 does not round
        parent = model.get_submodule(op.parent)
        parent.get_submodule(op.convolution).qconfig = taoq.QConfig(taoq.NoopObserver, weight)  # type: ignore[assignment]
    with _quiet():
        if is_qat:
            table = {**get_default_qat_module_mappings(), nn.Conv1d: torch.ao.nn.qat.Conv1d}
            taoq.prepare_qat(model, mapping={**table, FusedReLU6: _ThroughReLU(table)}, inplace=True)
        else:
            taoq.prepare(model, inplace=True)
    for module in model.modules():
        if isinstance(module, Observed) and module not in in_islands:
            module.activation_post_process = model.qconfig.activation()  # type: ignore[operator, union-attr]
    return found


def convert(model: nn.Module, backend: str, post_ops: list[PostOp]) -> None:
    """Swaps prepared modules for int8 ones in place, packed for ``backend``."""
    table = {
        **get_default_static_quant_module_mappings(),
        torch.ao.nn.qat.Conv1d: nnq.Conv1d,
        Addition: _ToArithmetic(),
        Multiplication: _ToArithmetic(),
        QuantStub: nnq.Quantize,
        DeQuantStub: nnq.DeQuantize,
    }
    with running_on(backend), _quiet():
        for op in post_ops:
            _convert_post_op(model.get_submodule(op.parent), op, table)
        taoq.convert(model, mapping={**table, FusedReLU6: _ThroughReLU(table)}, inplace=True)
        if backend == "onednn":
            _replace_projections(model)
    for module in model.modules():
        if type(module) is nniq.ConvReLU2d and module.zero_point == 0:
            module.__class__ = ConvReLU2d
    if backend != "qnnpack":  # its kernels take whatever comes: there the layers must check
        straighten(model, {nnq.Conv2d: _conv2d, ConvReLU2d: _conv2d})


def _replace_projections(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nnq.Linear):
            weight, bias = child._weight_bias()
            output = float(child.scale), int(child.zero_point)
            projection = Int8Linear(weight, bias, [1, 1], [0, 0], [1, 1], 1, *output).eval()
            projection._forward_hooks, projection._forward_pre_hooks = child._forward_hooks, child._forward_pre_hooks
            setattr(module, name, projection)
        else:
            _replace_projections(child)


class _ToArithmetic:
    """Stands in a table of torch.ao, where a class would."""

    def from_float(self, observed: Addition | Multiplication) -> nn.Module:
        scale, zero_point = observed.activation_post_process.calculate_qparams()  # type: ignore[operator]
        if isinstance(observed, Addition):
            return Int8Addition(float(scale), int(zero_point), observed.relu)
        return Int8Multiplication(float(scale), int(zero_point))


class ConvReLU2d(nniq.ConvReLU2d):
    """Its zero point is zero, so saturation is the ReLU: without a ReLU of its own the kernel starts faster."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.quantized.conv2d(input, self._packed_params, self.scale, self.zero_point)


def _conv2d(conv: nnq.Conv2d, input: Tensor) -> Tensor:
    return torch.ops.quantized.conv2d.new(input, conv._packed_params, conv.scale, conv.zero_point)


def _convert_post_op(parent: nn.Module, op: PostOp, table: dict[Any, Any]) -> None:
    convolution, operation = parent.get_submodule(op.convolution), parent.get_submodule(op.operation)
    convolution.activation_post_process = operation.activation_post_process
    alone = table[type(convolution)].from_float(convolution)
    weight, bias = alone._weight_bias()
    geometry = list(alone.stride), list(alone.padding), list(alone.dilation), alone.groups
    output = float(alone.scale), int(alone.zero_point)
    both: nn.Module
    if isinstance(operation, ObservedActivation):
        activation = ACTIVATIONS[type(operation.module)]
        both = Int8ConvActivation2d(weight, bias, *geometry, *output, activation)
    else:
        both = Int8ConvAddition2d(weight, bias, *geometry, *output)
    parent.set_submodule(op.operation, both.train(operation.training))
    parent.set_submodule(op.convolution, nn.Identity().train(convolution.training))
    mark_fused(parent, op.convolution, op.operation)


def freeze(model: nn.Module) -> None:
    """Stops batch statistics and observers in place, until the model is put into training mode again."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        elif hasattr(module, "freeze_bn_stats"):
            module.freeze_bn_stats()  # type: ignore[operator]  # a fused module of torch.ao
    model.apply(taoq.disable_observer)
    for module in model.modules():
        # A range of weights follows from them alone, and they are still trained: x86 relies on it.
        if isinstance(module, taoq.FakeQuantizeBase) and isinstance(module.activation_post_process, _PairRange):
            module.enable_observer()


def is_fused_for_training(model: nn.Module) -> bool:
    """Whether a module is fused with a batch norm that is not folded."""
    return any(
        isinstance(module, _FusedModule)
        and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
        for module in model.modules()
    )


def unobserved(model: nn.Module) -> list[str]:
    """Paths of prepared modules that nothing ran through yet."""
    return [
        path.split(".activation_post_process")[0]
        for path, module in model.named_modules()
        if isinstance(module, (taoq.HistogramObserver, taoq.MinMaxObserver)) and bool(module.min_val.isinf().any())
    ]


def _add_islands(module: nn.Module, backend: str) -> None:
    for name, child in module.named_children():
        if isinstance(child, FloatIsland) or is_unit(child):
            continue
        if kernel(child) in (Kernel.ISLAND, Kernel.UNKNOWN) or (
            backend == "qnnpack" and type(child) in _NOT_ON_QNNPACK
        ):
            setattr(module, name, FloatIsland(child))
        else:
            _add_islands(child, backend)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out torch's deprecations of eager mode and of its tensors, about which a caller of ours can do nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor.*deprecated", category=UserWarning)
        yield
