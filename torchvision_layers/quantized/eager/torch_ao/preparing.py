"""Adds observers, or fake quantization, to a fused model."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
import torch.ao.nn.qat
import torch.ao.quantization as taoq
from torch import Tensor, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.quantization.quantization_mappings import get_default_qat_module_mappings
from torch.ao.quantization.quantize import _observer_forward_hook

from ...._utils.modules import make_padding_numeric
from ...finite import FiniteValues
from ...layers.observed import Addition, Multiplication, Observed, QuantStub
from ...pairs import PairRange
from ...ranges import RangeRule
from ...report_row import Int8Support
from ...settings import Settings
from ...steps import SMALLEST_STEP, FineSteps
from ...wrapper import QuantizableWrapper
from ..calls import Call
from ..post_ops import ACTIVATIONS, PostOp
from ..support import becomes_int8, int8_support, is_unit
from ..wrappers import FloatArithmetic, FloatFallback, Int8Child, MultipleFloatFallback, ObservedActivation
from . import ignore_deprecations
from .fusing import FusedReLU6, ReLU6AsReLU
from .grouped_convs import moves_to_onednn
from .histograms import HistogramObserver, limited_observer
from .training_norms import FUSED_WITH_NORM
from .weight_ranges import weight_observer

__all__ = ["freeze", "is_observed", "leave_unobserved_in_float", "prepare", "unobserved_paths"]

# qnnpack's kernel for ReLU6, run as a module of its own, assumes dense channels_last memory, which its convolutions do
# not return.
_NOT_ON_QNNPACK = nn.ReLU6

_PLAIN = Call(is_plain=True, is_uniform=True, outputs=1)


class _MinMaxObserver(FiniteValues, taoq.MinMaxObserver):
    """Observes a range that holds every value."""


class _FineFakeQuantize(FineSteps, taoq.FusedMovingAvgObsFakeQuantize):
    """Rounds activations in training, with the steps of the conversion."""


class _UpToSix(taoq.FakeQuantize):
    """Rounds the output of a ReLU6 in training, whose clamp at 6 holds without rounding too."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.clamp(max=6.0))


class _LargestRange(taoq.MovingAverageMinMaxObserver):
    """Observes the results of several calls: an average would be too small for the calls with the largest.

    The range grows at once and shrinks slowly.
    """

    def forward(self, x_orig: Tensor) -> Tensor:
        if x_orig.numel():
            low, high = x_orig.detach().aminmax()
            super().forward(x_orig)
            self.min_val.copy_(self.min_val.minimum(low))
            self.max_val.copy_(self.max_val.maximum(high))
        return x_orig


def _activation_observer(is_qat: bool, is_repeated: bool = False) -> object:
    """Observes the range of an activation, for all eight bits."""
    if is_qat and is_repeated:
        return taoq.FakeQuantize.with_args(observer=_LargestRange, quant_min=0, quant_max=255, eps=SMALLEST_STEP)
    if is_qat:
        observer = taoq.MovingAverageMinMaxObserver
        return _FineFakeQuantize.with_args(observer=observer, quant_min=0, quant_max=255, eps=SMALLEST_STEP)
    return HistogramObserver.with_args(reduce_range=False, eps=SMALLEST_STEP)


def _relu6_observer(is_qat: bool, ranges: RangeRule, is_repeated: bool = False) -> object:
    """Observes a range that ends at 6, or at the largest value if none reaches 6; or earlier, by other rules."""
    if is_qat:
        observer = _LargestRange if is_repeated else taoq.MovingAverageMinMaxObserver
        return _UpToSix.with_args(observer=observer, quant_min=0, quant_max=255, eps=SMALLEST_STEP)
    if ranges not in ("histogram", "minmax"):
        return _activation_observer(is_qat)
    return _MinMaxObserver.with_args(dtype=torch.quint8, eps=SMALLEST_STEP)


def prepare(
    model: nn.Module,
    settings: Settings,
    post_ops: list[PostOp],
    is_qat: bool,
    calls: dict[nn.Module, Call] | None = None,
) -> None:
    """Wraps modules without an int8 kernel as float fallbacks, and adds observers or fake quantization elsewhere.

    Paths in ``post_ops`` are updated. After calibration, modules that are not in ``calls`` stay in float; training may
    call them.
    """
    backend = settings.backend
    is_unused = {m: calls is not None and not is_qat and calls.keys().isdisjoint(m.modules()) for m in model.modules()}
    unused = [module for module in model.modules() if is_unused[module]]
    for module in unused:
        module.qconfig = None  # type: ignore[assignment]  # torch.ao then leaves it alone
        module.is_unused = True  # type: ignore[assignment]  # a plain attribute, for the report
    for op in post_ops:
        parent = model.get_submodule(op.parent)
        activation = parent.get_submodule(op.operation)
        if type(activation) in ACTIVATIONS:
            parent.set_submodule(op.operation, ObservedActivation(activation))
    parents = [model.get_submodule(op.parent) for op in post_ops]
    _add_float_fallbacks(model, backend, calls)
    paths = {module: path for path, module in model.named_modules()}
    post_ops[:] = [op._replace(parent=paths[parent]) for op, parent in zip(post_ops, parents, strict=True)]
    make_padding_numeric(model)  # int8 convolutions accept nothing else
    weight = weight_observer(backend, is_qat, settings.per_channel)
    model.qconfig = taoq.QConfig(activation=_activation_observer(is_qat), weight=weight)  # type: ignore[assignment]
    of_repeated = taoq.QConfig(activation=_activation_observer(is_qat, is_repeated=True), weight=weight)
    repeated = {module for module, call in (calls or {}).items() if call.count > 1}
    in_float, in_both = _modules_in_float(model)
    in_float.update(unused)
    for stub in model.modules():
        if isinstance(stub, QuantStub) and hasattr(stub, "returns_float"):
            stub.qconfig = None  # type: ignore[assignment]
            in_float.add(stub)
    for module in model.modules():
        # A forward in float around an int8 child has none, nor gives one to modules that others call in int8.
        if isinstance(module, Int8Child) or (module in in_both and becomes_int8(module) and module not in in_float):
            module.qconfig = model.qconfig
        if module in repeated and module not in in_float and getattr(module, "qconfig", model.qconfig) is not None:
            module.qconfig = of_repeated  # type: ignore[assignment]
        if isinstance(module, FusedReLU6) and module not in in_float:
            relu6 = _relu6_observer(is_qat, settings.ranges, not repeated.isdisjoint(module.modules()))
            module.qconfig = taoq.QConfig(activation=relu6, weight=weight)  # type: ignore[assignment]
        elif hasattr(module, "largest_output") and module not in in_float:
            limited = limited_observer(is_qat, float(module.largest_output))  # type: ignore[arg-type]  # a number
            module.qconfig = taoq.QConfig(activation=limited, weight=weight)  # type: ignore[assignment]
    for op in post_ops:  # nothing is rounded between the convolution and its post-operation
        conv = model.get_submodule(op.parent).get_submodule(op.convolution)
        conv.qconfig = taoq.QConfig(taoq.NoopObserver, weight)  # type: ignore[assignment]
    if backend == "x86":
        any_order = weight_observer(backend, is_qat, settings.per_channel, any_order=True)
        for module in filter(moves_to_onednn, set(model.modules()) - in_float):
            module.qconfig = getattr(module, "qconfig", model.qconfig)._replace(weight=any_order)  # type: ignore[union-attr, operator]
    with ignore_deprecations():
        if is_qat:
            _share_observers(model)
            mapping = get_default_qat_module_mappings() | {nn.Conv1d: torch.ao.nn.qat.Conv1d} | FUSED_WITH_NORM
            taoq.prepare_qat(model, mapping={**mapping, FusedReLU6: ReLU6AsReLU(mapping)}, inplace=True)
            _observe_weights(model)
        else:
            taoq.prepare(model, inplace=True)
            _observe_once(model)
    tensor = next(chain(model.parameters(), model.buffers()), None)
    # Without this argument, torch looks for the device in all tensors of the model, for each observer again.
    place = {"factory_kwargs": None if tensor is None else {"device": tensor.device}}
    for module in model.modules():
        if isinstance(module, Observed) and module not in in_float:
            observer: Any = (of_repeated if module in repeated else model.qconfig).activation  # type: ignore[union-attr]
            if getattr(module, "cap", None) is not None and module not in repeated:
                observer = _relu6_observer(is_qat, settings.ranges)
            module.activation_post_process = observer(**place)


def _share_observers(model: nn.Module) -> None:
    """Gives the first module of each fused one the observer of the whole: torch.ao reads only the first."""
    for module in model.modules():
        if isinstance(module, _FusedModule):
            whole, first = (getattr(each, "qconfig", None) for each in (module, module[0]))
            if whole is not None and first is not None:
                module[0].qconfig = first._replace(activation=whole.activation)


def _observe_weights(model: nn.Module) -> None:
    """Gives the buffers of weights the shape that they keep, for copies that are updated later, as averages are."""
    for module in model.modules():
        if "weight_fake_quant" in module._modules:
            module.weight_fake_quant(module.weight.detach())  # type: ignore[operator]


def _observe_once(model: nn.Module) -> None:
    """Takes away the hooks of observers in fused modules, which are ``Sequential`` and so run the observer as well."""
    for module in model.modules():
        if isinstance(module, nn.Sequential) and "activation_post_process" in module._modules:
            for key, hook in list(module._forward_hooks.items()):
                if hook is _observer_forward_hook:
                    del module._forward_hooks[key]


def _add_float_fallbacks(
    module: nn.Module, backend: str, calls: dict[nn.Module, Call] | None, is_in_float: bool = False
) -> None:
    """Wraps each module below ``module`` that runs in float, unless the ``forward`` that calls it does too."""
    for name, child in list(module._modules.items()):  # a module may have several names
        if child is None or hasattr(child, "is_unused") or (is_unit(child) and not hasattr(child, "excluded_by")):
            continue
        if isinstance(child, (FloatFallback, MultipleFloatFallback)):  # below a module that is in several places
            continue
        call = _PLAIN if calls is None else calls.get(child, _PLAIN)
        support = int8_support(child)
        if support is Int8Support.FLOAT_FORWARD:
            if not is_in_float:
                # The results of the model itself stay in float.
                outputs = None if isinstance(module, QuantizableWrapper) else call.outputs
                setattr(module, name, MultipleFloatFallback(child, outputs))
            _add_float_fallbacks(child, backend, calls, is_in_float=True)
        elif support in (Int8Support.FLOAT_FALLBACK, Int8Support.UNKNOWN) or (
            backend == "qnnpack" and type(child) is _NOT_ON_QNNPACK
        ):
            if not is_in_float:
                setattr(module, name, _float_fallback(child, call))
        else:
            _add_float_fallbacks(child, backend, calls, is_in_float and not isinstance(child, Int8Child))


def _float_fallback(module: nn.Module, call: Call) -> nn.Module:
    if isinstance(module, (Addition, Multiplication)):
        return FloatArithmetic(module)
    if call.is_plain:
        return FloatFallback(module)
    return MultipleFloatFallback(module, None if hasattr(module, "returns_float") else call.outputs)


def _modules_in_float(model: nn.Module) -> tuple[set[nn.Module], set[nn.Module]]:
    """The modules below float fallbacks, except those that int8 children run; and those that are elsewhere as well."""
    places: dict[bool, set[nn.Module]] = {False: set(), True: set()}

    def visit(module: nn.Module, is_in_float: bool) -> None:
        if module in places[is_in_float]:
            return
        places[is_in_float].add(module)
        for child in module.children():
            is_fallback = isinstance(module, (FloatFallback, MultipleFloatFallback)) and child is module.module
            visit(child, (is_in_float or is_fallback) and not isinstance(child, Int8Child))

    visit(model, False)
    return places[True] - places[False], places[True] & places[False]


def freeze(model: nn.Module) -> None:
    """Stops batch statistics and observers in place, until the model is put into training mode again."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        elif hasattr(module, "freeze_bn_stats"):
            module.freeze_bn_stats()  # type: ignore[operator]  # a fused module of torch.ao
    model.apply(taoq.disable_observer)
    for module in model.modules():
        # Ranges of weights depend on the weights alone, which are still trained, and x86 relies on them.
        if isinstance(module, taoq.FakeQuantizeBase) and isinstance(module.activation_post_process, PairRange):
            module.enable_observer()


def leave_unobserved_in_float(model: nn.Module) -> None:
    """Excludes modules that no batch has reached from conversion, in place."""
    for path in unobserved_paths(model):
        module = model.get_submodule(path)
        module.qconfig = None  # type: ignore[assignment]  # torch.ao then leaves it alone
        module.is_unused = True  # type: ignore[assignment]  # a plain attribute, for the report


def unobserved_paths(model: nn.Module) -> list[str]:
    """Paths of prepared modules that no batch has reached yet."""
    return [path.split(".activation_post_process")[0] for path, is_observed in _observers(model) if not is_observed]


def is_observed(model: nn.Module) -> bool:
    """Whether a batch has reached a prepared module, or none needs one."""
    results = [is_observed for _, is_observed in _observers(model)]
    return any(results) or not results


def _observers(model: nn.Module) -> Iterator[tuple[str, bool]]:
    """The path of each observer, and whether it has seen values."""
    for path, module in model.named_modules():
        if isinstance(module, (taoq.HistogramObserver, taoq.MinMaxObserver)):
            yield path, not bool(module.min_val.isinf().any())
