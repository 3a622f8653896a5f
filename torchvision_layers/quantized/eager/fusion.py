"""Fuses the chains of modules that a ``forward`` calls, as far as they can be fused exactly."""

import inspect

from torch import nn

from ..._utils.modules import has_hooks
from ..._utils.tracing import trace_forward
from ..layers.observed import Addition
from ..report_row import Int8Support
from .patterns import BATCH_NORMS, is_foldable, mark_fused
from .support import int8_support, is_unit
from .torch_ao import explain_missing_torch_ao

__all__ = ["fuse_children"]


def fuse_children(module: nn.Module, is_qat: bool) -> None:
    """Fuses the chains of modules that ``module.forward`` calls, in place, then those below each of them.

    A child with a ``fuse_model`` of its own fuses itself. A child that ``forward`` calls only in part is left alone,
    because the part would then also compute the module after it.
    """
    trace = trace_forward(module)
    for chain in trace.chains:
        _fuse_chain(module, chain, is_qat)
    for name in trace.whole:
        child = module.get_submodule(name)
        if is_unit(child):
            continue
        fuse_model = getattr(child, "fuse_model", None)
        if fuse_model is None:
            fuse_children(child, is_qat)
        elif inspect.signature(fuse_model).parameters:
            fuse_model(is_qat)
        else:
            fuse_model()


def _fuse_chain(parent: nn.Module, names: list[str], is_qat: bool) -> None:
    """Fuses each convolution or linear layer of a chain with the norm and the ReLU after it, as far as possible."""
    modules = [parent.get_submodule(name) for name in names]
    for start, first in enumerate(modules):
        if isinstance(first, Addition) and start + 1 < len(names):
            _fuse_addition(parent, names[start], names[start + 1])
        if type(first) not in BATCH_NORMS or has_hooks(first) or int8_support(first) is not Int8Support.CONVERTED:
            continue
        group, can_take_norm = [start], True
        for i in range(start + 1, len(modules)):
            module = modules[i]
            if has_hooks(module) or hasattr(module, "fused_into"):
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
        with explain_missing_torch_ao():
            from .torch_ao.fusing import fuse_group
        fuse_group(parent, [names[i] for i in group], is_qat)


def _fuse_addition(parent: nn.Module, addition_name: str, relu_name: str) -> None:
    addition, relu = parent.get_submodule(addition_name), parent.get_submodule(relu_name)
    if type(relu) is nn.ReLU and not has_hooks(relu) and not has_hooks(addition):
        addition.relu = True  # type: ignore[assignment]  # a plain attribute
        parent.set_submodule(relu_name, nn.Identity().train(relu.training))
        mark_fused(parent, relu_name, addition_name)
