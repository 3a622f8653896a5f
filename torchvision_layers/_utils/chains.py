"""Chains of modules that feed one another, across the containers that they are in."""

from collections.abc import Callable, Iterator

from torch import nn

from .tracing import Trace, trace_forward

__all__ = ["expand_chain"]


def expand_chain(
    parent: nn.Module,
    names: list[str],
    is_opaque: Callable[[nn.Module], bool],
    trace: Trace = trace_forward,
) -> list[list[str]]:
    """The chain without containers: in place of each, the modules that it runs first and last, at any depth.

    A container that runs all of its modules one after another is part of one chain; any other ends a chain with the
    modules that alone take its input, and begins one with those that alone produce its result.

    Args:
        parent: the module that the names are relative to, in the result as well.
        names: a chain of modules, each feeding only the next.
        is_opaque: whether to treat a module as a unit.
        trace: returns how a ``forward`` uses the modules below it.
    """
    chains: list[list[str]] = [[]]
    for name in names:
        for inner in _expand(parent.get_submodule(name), name, is_opaque, trace):
            if inner is None:
                chains.append([])
            else:
                chains[-1].append(inner)
    return [chain for chain in chains if chain]


def _expand(module: nn.Module, path: str, is_opaque: Callable[[nn.Module], bool], trace: Trace) -> Iterator[str | None]:
    """Paths of the modules in place of one, with ``None`` between those that do not feed one another."""
    if type(module) is nn.Sequential and not module._modules:  # returns its input
        return
    if is_opaque(module) or not module._modules:
        yield path
        return
    traced = trace(module)
    ends = [traced.entry] if traced.entry == traced.result else [traced.entry, traced.result]
    for i, names in enumerate(ends):
        if i > 0 or not names:
            yield None
        for name in names:
            yield from _expand(module.get_submodule(name), f"{path}.{name}", is_opaque, trace)
