"""Finds each ``forward`` that reads what folding changes, and the modules that it reads it from."""

from collections.abc import Callable, Collection

from torch import nn

from ..._utils.folded_forms import has_folded
from ..._utils.forward_graphs import ForwardGraphs, graphs_of
from .rules import is_opaque, runs_in_order

__all__ = ["find_read_modules", "graphs_of_forwards"]


def graphs_of_forwards(model: nn.Module) -> dict[str, ForwardGraphs]:
    """The graphs of each ``forward`` above other modules by its path.

    Those are left out that just call all of them in order, and all in a module with a form of its own when folded.
    """
    replaced = {part for module in model.modules() if has_folded(module) for part in module.modules()}
    return {path: graphs_of(m) for path, m in model.named_modules() if m not in replaced and _may_read(m)}


def find_read_modules(
    before: dict[str, ForwardGraphs], folded: nn.Module, build: Callable[[], nn.Module], kept: Collection[str]
) -> set[str]:
    """Paths of further modules to leave alone, so that each ``forward`` calls and reads the same as before.

    Args:
        before: the graphs before the model was folded.
        folded: the model, folded except for ``kept``.
        build: returns the model as it was before.
        kept: paths of modules that were left alone, with those below them.
    """
    modules = dict(folded.named_modules())
    changed = [
        path
        for path, graphs in before.items()
        if graphs.calls is not None
        and path in modules
        and type(modules[path]) is graphs.cls  # and not replaced as a whole
        and not graphs.is_same(graphs_of(modules[path]))
    ]
    model, found = build() if changed else folded, set[str]()
    for path in changed:
        module = model.get_submodule(path)
        if not before[path].is_same(graphs_of(module)):  # each trace differs, with or without folding
            continue
        names = [name for name in module._modules if _depends_on(module, name, modules[path], before[path])]
        new = {name for name in (f"{path}.{name}".lstrip(".") for name in names) if not _is_kept(name, kept)}
        while not new and _is_kept(path, kept) and path:  # it reads modules outside it
            path = path.rpartition(".")[0]
        found |= new or {path}
    return {path for path in found if not _is_kept(path, kept)}


def _may_read(module: nn.Module) -> bool:
    if not module._modules or type(module).forward is nn.Module.forward:  # an nn.ModuleList has no forward
        return False
    return not is_opaque(module) and not runs_in_order(module)


def _depends_on(module: nn.Module, name: str, folded: nn.Module, graphs: ForwardGraphs) -> bool:
    """Whether the ``forward`` of ``module`` does something else if only one child is that of ``folded``."""
    child, other = module._modules[name], folded._modules.get(name)
    if child is None or other is None:
        return False
    module._modules[name] = other
    try:
        return not graphs.is_same(graphs_of(module))
    finally:
        module._modules[name] = child


def _is_kept(path: str, kept: Collection[str]) -> bool:
    return any(path == other or not other or path.startswith(f"{other}.") for other in kept)
