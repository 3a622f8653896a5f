"""Fuses the chains of modules that a ``forward`` calls, as far as they can be fused exactly."""

import inspect
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

from ..._utils.chains import expand_chain
from ..._utils.modules import has_hooks
from ..._utils.tracing import Trace, trace_forward
from ...layers.channel_cap import ChannelCap
from ..layers.observed import Addition
from ..report_row import Int8Support
from .patterns import BATCH_NORMS, is_foldable, mark_fused
from .support import int8_support, is_unit

__all__ = ["fuse_children", "is_transparent"]


def fuse_children(
    module: nn.Module,
    is_qat: bool,
    shared: frozenset[nn.Module] | None = None,
    trace: Trace | None = None,
) -> None:
    """Fuses the chains of modules that ``module.forward`` calls, in place, then those below each of them.

    Chains go through containers. A child with a ``fuse_model`` of its own fuses itself. A child that ``forward`` calls
    only in part is left alone, because the part would then also compute the module after it.

    Args:
        module: the module whose children are fused.
        is_qat: whether to keep batch norms, for training.
        shared: modules that are registered in several places, whose insides fuse with nothing outside. Default:
            ``None``, those below ``module``.
        trace: :func:`trace_forward`, or a function with its results. Default: ``None``, a cache, because a container is
            traced for the chains around it and for those inside it.
    """
    trace = trace or cache(trace_forward)
    if shared is None:
        places = Counter(
            child for parent in module.modules() for child in parent._modules.values() if child is not None
        )
        shared = frozenset(child for child, count in places.items() if count > 1)
    traced = trace(module)
    for names in traced.chains:
        for chain in expand_chain(module, names, lambda child: child in shared or not is_transparent(child), trace):
            _fuse_chain(module, chain, is_qat)
    for name in traced.whole:
        child = module.get_submodule(name)
        if is_unit(child):
            continue
        fuse_model = _own_fuse_model(child)
        if fuse_model is None:
            fuse_children(child, is_qat, shared, trace)
        elif inspect.signature(fuse_model).parameters:
            fuse_model(is_qat)
        else:
            fuse_model()


def is_transparent(module: nn.Module) -> bool:
    """Whether the modules in a container may fuse with those around it."""
    is_container = not is_unit(module) and int8_support(module) is Int8Support.CONTAINER
    return is_container and not has_hooks(module) and _own_fuse_model(module) is None


def _own_fuse_model(module: nn.Module) -> Callable[..., object] | None:
    """The method with which a module fuses itself, unless it is that of a twin, which calls :func:`fuse_children`."""
    method: Any = getattr(module, "fuse_model", None)
    is_of_twin = getattr(method, "__module__", "") == f"{__package__.rpartition('.')[0]}.layers.base"
    return None if is_of_twin else method


def _fuse_chain(parent: nn.Module, names: list[str], is_qat: bool) -> None:
    """Fuses each convolution or linear layer of a chain with the norm and the ReLU after it, as far as possible."""
    modules = [parent.get_submodule(name) for name in names]
    for start, first in enumerate(modules):
        if isinstance(first, Addition) and start + 1 < len(names):
            _fuse_addition(parent, names[start], names[start + 1])
        is_excluded = hasattr(first, "excluded_by")  # the norm and the activation then run in float as well
        is_convertible = is_excluded or int8_support(first) is Int8Support.CONVERTED
        if type(first) not in BATCH_NORMS or _computes_more(first) or not is_convertible:
            continue
        group, can_take_norm = [start], True
        for i in range(start + 1, len(modules)):
            module = modules[i]
            if _computes_more(module) or hasattr(module, "fused_into"):
                break
            if hasattr(module, "excluded_by") and not is_excluded:
                break
            if type(module) is nn.Identity:
                continue
            if type(module) is nn.Dropout and type(first) is nn.Linear:
                # The identity in eval mode. In training it commutes with ReLU, but not with a norm or with ReLU6.
                can_take_norm = False
                continue
            if can_take_norm and is_foldable(first, module, is_qat):
                group.append(i)
                can_take_norm = False
                continue
            has_dropout = any(type(m) is nn.Dropout for m in modules[start + 1 : i])
            if type(module) is nn.ReLU or (type(module) is nn.ReLU6 and not (is_qat and has_dropout)):
                group.append(i)
            break
        if len(group) == 1:
            continue
        if is_qat and type(first) is nn.Conv1d and type(modules[group[1]]) is not nn.BatchNorm1d:
            continue  # torch has no fused Conv1d and ReLU for training without a norm between them
        try:
            from .torch_ao.fusing import fuse_group
        except ImportError:  # nothing converts fused modules then, so any that compute the same will do
            from .fusing import fuse_group
        fuse_group(*_relative(parent, [names[i] for i in group]), is_qat)
        after = next((module for module in modules[group[-1] + 1 :] if type(module) is not nn.Identity), None)
        if isinstance(after, ChannelCap) and type(modules[group[-1]]) is nn.ReLU:
            # Int8 need not hold larger values, which the cap ends.
            parent.get_submodule(names[start]).largest_output = float(after.cap.max())  # type: ignore[assignment]
        if is_excluded:
            fused = parent.get_submodule(names[start])
            fused.stays_in_float, fused.excluded_by = True, first.excluded_by  # type: ignore[assignment]


def _fuse_addition(parent: nn.Module, addition_name: str, relu_name: str) -> None:
    parent, (addition_name, relu_name) = _relative(parent, [addition_name, relu_name])
    addition, relu = parent.get_submodule(addition_name), parent.get_submodule(relu_name)
    if type(relu) in (nn.ReLU, nn.ReLU6) and not _computes_more(relu) and not _computes_more(addition):
        addition.relu = True  # type: ignore[assignment]  # a plain attribute
        if type(relu) is nn.ReLU6:  # saturation at the end of the observed range is the cap
            addition.cap = 6.0  # type: ignore[assignment]
        parent.set_submodule(relu_name, nn.Identity().train(relu.training))
        mark_fused(parent, relu_name, addition_name)


def _computes_more(module: nn.Module) -> bool:
    """Whether a call of a module may compute something else than its class does."""
    return has_hooks(module) or "forward" in vars(module)


def _relative(parent: nn.Module, names: list[str]) -> tuple[nn.Module, list[str]]:
    """The innermost module that has all of these modules below it, and their names relative to it."""
    while all("." in name for name in names) and len({name.partition(".")[0] for name in names}) == 1:
        parent = parent.get_submodule(names[0].partition(".")[0])
        names = [name.partition(".")[2] for name in names]
    return parent, names
