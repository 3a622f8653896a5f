"""Modules whose ``forward`` runs in float, while convolutions and linear layers below them become int8."""

from collections import defaultdict
from collections.abc import Iterator

from torch import nn

from ..report_row import Int8Support
from .attention import FloatAttention
from .first_run import FirstRun
from .support import becomes_int8, int8_support, is_unit
from .wrappers import Int8Child

__all__ = ["add_int8_children", "mark_float_forwards"]


def mark_float_forwards(model: nn.Module) -> None:
    """Marks each module that has layers below it that become int8, but a ``forward`` that int8 is not known to run."""
    for module in model.modules():
        if int8_support(module) is Int8Support.UNKNOWN and type(module) is not nn.MultiheadAttention:
            module.runs_in_float = becomes_int8(module)  # type: ignore[assignment]  # a plain attribute


def add_int8_children(model: nn.Module, will_train: bool, run: FirstRun | None) -> None:
    """Puts an :class:`Int8Child` around each module that a ``forward`` in float calls and that is to run in int8.

    Args:
        model: with its ``forward`` marked, fused or not.
        will_train: whether the model will be trained.
        run: what ``model`` did on one batch. Without it, each module is assumed to call those directly below it.
    """
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            FloatAttention.become(module)
    modules = dict(model.named_modules())
    children = set()
    for path, module in modules.items():
        if not getattr(module, "runs_in_float", False):
            continue
        if run is None or isinstance(module, FloatAttention):
            children.update(_below(module))
        else:
            children.update(modules[p] for p in run.callees[path] | run.weights[path] if p in modules)
    wrapped = {child: Int8Child(child, will_train) for child in children if _needs_int8(child)}
    for module in modules.values():
        for name, child in module._modules.items():
            if child in wrapped:
                module._modules[name] = wrapped[child]


def _needs_int8(child: nn.Module) -> bool:
    return not getattr(child, "runs_in_float", False) and becomes_int8(child)


def _below(module: nn.Module) -> Iterator[nn.Module]:
    """The nearest modules below ``module`` that have a ``forward`` of their own."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from _below(child)
        else:
            yield child
