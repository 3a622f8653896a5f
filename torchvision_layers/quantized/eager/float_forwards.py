"""Modules whose ``forward`` runs in float, while convolutions and linear layers below them become int8."""

from collections.abc import Iterator

from torch import nn

from ...layers.layer_norm import LayerNorm2d
from ..report_row import Int8Support
from .attention import FloatAttention
from .first_run import FirstRun
from .rewriting import restore
from .support import becomes_int8, int8_support, is_unit
from .wrappers import Int8Child

__all__ = ["add_int8_children", "mark_float_forwards"]


# Norms without an int8 kernel. Batch norms are another matter: most of them fold into a convolution.
_NORMS = (
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.RMSNorm,
    LayerNorm2d,
)


def mark_float_forwards(model: nn.Module, run: FirstRun | None) -> None:
    """Marks each module with layers below it that become int8, but a ``forward`` that is to run in float.

    Such a ``forward`` is not known to run in int8, or computes with the output of a norm or a ``forward`` in float:
    transformers keep the sum of all blocks, whose values differ more in size than eight bits can hold.

    Args:
        model: with each ``forward`` rewritten that can be.
        run: what ``model`` did on one batch. Without it, each module is assumed to call those directly below it.
    """
    modules = dict(model.named_modules())
    for path, module in reversed(modules.items()):
        support = int8_support(module)
        if is_unit(module) or hasattr(module, "float_class") or type(module) is nn.MultiheadAttention:
            continue
        if support not in (Int8Support.CONTAINER, Int8Support.UNKNOWN) or not becomes_int8(module):
            continue
        below = list(module.children()) if run is None else _callees(modules, path, run)
        calls_writer = run is not None and not run.callees[path].isdisjoint(run.kept & run.silent_writers)
        if (
            support is Int8Support.UNKNOWN
            or calls_writer
            or any(
                type(callee) is nn.MultiheadAttention
                or getattr(callee, "runs_in_float", False)
                or (hasattr(module, "is_rewritten") and isinstance(callee, _NORMS))
                for callee in below
            )
        ):
            restore(module)
            module.runs_in_float = True
            if run is not None:
                run.traces.pop(module, None)


def _callees(modules: dict[str, nn.Module], path: str, run: FirstRun | None) -> list[nn.Module]:
    """The modules that the one at ``path`` calls, or whose weights it reads."""
    if run is None or isinstance(modules[path], FloatAttention):
        return list(_below(modules[path]))
    return [modules[callee] for callee in run.callees[path] | run.weights[path] if callee in modules]


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
    children: set[nn.Module] = set()
    for path, module in modules.items():
        if getattr(module, "runs_in_float", False):
            children.update(_callees(modules, path, run))
    wrapped = {child: Int8Child(child, will_train) for child in children if _needs_int8(child)}
    for module in modules.values():
        for name, child in module._modules.items():
            if child in wrapped:
                module._modules[name] = wrapped[child]


def _needs_int8(child: nn.Module) -> bool:
    return not getattr(child, "runs_in_float", False) and becomes_int8(child)


def _below(module: nn.Module) -> Iterator[nn.Module]:
    """The nearest modules below ``module`` that have a ``forward`` of their own; it may call a part of a Sequential."""
    for child in module.children():
        if type(child).forward in (nn.Module.forward, nn.Sequential.forward) and not is_unit(child):
            child.runs_in_float = becomes_int8(child)  # type: ignore[assignment]  # a plain attribute
            yield from _below(child)
        else:
            yield child
