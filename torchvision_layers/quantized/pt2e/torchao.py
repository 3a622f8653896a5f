"""Observers, preparation and conversion by torchao."""

import dataclasses
import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchao.quantization.pt2e as pt2e
from torch import fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationConfig, Quantizer
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from ..finite import FiniteValues
from ..pairs import PairRange
from ..range_search import FastRangeSearch
from ..settings import Settings
from ..steps import SMALLEST_STEP, SMALLEST_WEIGHT_STEP, FineSteps, with_one_step
from .quantizers import quantizer_for

__all__ = ["convert", "disable_observers", "is_observed", "prepare"]

#: Functions of torchao and torch that remember the device of each model, by the modules that they are in.
_DEVICE_CACHES = {
    "torchao.utils": "_assert_and_get_unique_device",
    "torch.ao.quantization.fx.utils": "assert_and_get_unique_device",
}


def prepare(graph: fx.GraphModule, settings: Settings, is_qat: bool) -> fx.GraphModule:
    """Adds observers, or fake quantization for training, to the edges that the backend quantizes.

    ``prepare_pt2e`` works for training too: the quantizer chooses between observers and fake quantization, and batch
    norms are already fused with their convolutions. ``prepare_qat_pt2e`` would fuse those of one and two dimensions
    only, in 4 to 30 seconds, and with the ``eps`` and ``momentum`` of its own pattern.
    """
    quantizer = _quantizer(settings, is_qat)
    with _ignore_warnings(), _forgetting_models():
        prepared = prepare_pt2e(graph, quantizer)
    for module in prepared.modules():
        if type(module) is pt2e.HistogramObserver:  # from the quantizer of executorch
            module.__class__ = _HistogramObserver
    if is_qat:
        _observe_weights(prepared)
    return prepared


def _observe_weights(prepared: fx.GraphModule) -> None:
    """Gives the buffers of weights the shape that they keep, for copies that are updated later, as averages are."""
    for node in prepared.graph.nodes:
        fake_quantize: Any = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
        if getattr(fake_quantize, "is_per_channel", False):
            fake_quantize(torch.zeros(node.args[0].meta["val"].shape, device=fake_quantize.scale.device))


def convert(graph: fx.GraphModule) -> fx.GraphModule:
    """Replaces observers by quantize and dequantize nodes, and weights by int8 weights."""
    with _ignore_warnings(), _forgetting_models(), torch.random.fork_rng(devices=[]):  # it constructs layers
        return convert_pt2e(graph)


def disable_observers(graph: fx.GraphModule) -> None:
    """Freezes all ranges, except those of weights that are still trained and must not overflow."""
    for module in graph.modules():
        if isinstance(module, pt2e.FakeQuantizeBase):
            module.enable_observer(isinstance(module.activation_post_process, PairRange))


def is_observed(graph: fx.GraphModule) -> bool:
    """Whether every observer has seen a batch."""
    observers = [module for module in graph.modules() if isinstance(module, pt2e.UniformQuantizationObserverBase)]
    return not any(bool(observer.min_val.isinf().any()) for observer in observers if observer.min_val.numel())


def _quantizer(settings: Settings, is_qat: bool) -> Quantizer:
    if settings.backend == "xnnpack":
        return _xnnpack_quantizer(settings.per_channel, is_qat)
    config = x86.get_default_x86_inductor_quantization_config(is_qat=is_qat)
    return quantizer_for(settings.backend, _with_own_observers(config, is_qat, settings))


def _xnnpack_quantizer(per_channel: bool, is_qat: bool) -> Quantizer:
    try:
        xnnpack = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    except ImportError as error:
        raise ImportError('backend="xnnpack" needs executorch: pip install executorch') from error
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=per_channel, is_qat=is_qat)
    return xnnpack.XNNPACKQuantizer().set_global(config)


class _HistogramObserver(FiniteValues, FastRangeSearch, pt2e.HistogramObserver):
    """Observes a range that leaves out rare large values if rounding the others gains from it."""


class _FineFakeQuantize(FineSteps, pt2e.FusedMovingAvgObsFakeQuantize):
    """Rounds activations in training, with the steps of the conversion."""


class _PairRange(PairRange, pt2e.PerChannelMinMaxObserver):
    """For the kernels of onnxruntime."""


def _with_own_observers(config: QuantizationConfig, is_qat: bool, settings: Settings) -> QuantizationConfig:
    """The configuration with a symmetric range of weights, small steps, and training that uses the scales of int8.

    torch's default has one more step below, so the largest weight of each channel falls between two steps and is always
    rounded down, which shifts all outputs to one side. For training, the fused kernel of the default also shifts the
    zero point of a channel whose weights all have one sign, which the conversion does not.
    """
    is_bounded = settings.backend == "onnxruntime" and not settings.vnni
    observer = pt2e.MovingAveragePerChannelMinMaxObserver if is_qat else pt2e.PerChannelMinMaxObserver
    if is_bounded:
        observer = _PairRange
    if not settings.per_channel:
        observer = with_one_step(observer)
    if is_qat:
        # The range of the present weights, which is also that of the conversion.
        range_of_weights = observer if is_bounded else observer.with_args(averaging_constant=1.0)
        for_weights = pt2e.FakeQuantize.with_args(observer=range_of_weights, eps=SMALLEST_WEIGHT_STEP)
        for_activations = _FineFakeQuantize.with_args(eps=SMALLEST_STEP)
        if settings.backend == "tensorrt":  # the fused kernel is not symmetric if all values have one sign
            range_of_activations = pt2e.MovingAverageMinMaxObserver
            for_activations = pt2e.FakeQuantize.with_args(observer=range_of_activations, eps=SMALLEST_STEP)
    else:
        for_weights = observer.with_args(eps=SMALLEST_WEIGHT_STEP)
        for_activations = _HistogramObserver.with_args(eps=SMALLEST_STEP)
    weight = dataclasses.replace(config.weight, quant_min=-127, observer_or_fake_quant_ctr=for_weights)
    activation = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=for_activations)
    return dataclasses.replace(config, input_activation=activation, weight=weight)


@contextmanager
def _forgetting_models() -> Iterator[None]:
    """Empties the caches of devices, whose keys keep each model that was prepared or converted alive."""
    try:
        yield
    finally:
        for module, name in _DEVICE_CACHES.items():
            clear = getattr(getattr(sys.modules.get(module), name, None), "cache_clear", None)
            if clear is not None:
                clear()


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Ignores warnings of torch and torchao about themselves, which a caller of this package cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is deprecated", module=r"torch(ao)?\.")
        warnings.filterwarnings("ignore", message="The input of .* is not quantized", module=r"torchao\.")
        yield
