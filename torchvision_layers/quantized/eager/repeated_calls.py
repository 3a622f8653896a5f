"""Modules that are called several times with results of different sizes: each call gets a module of its own."""

import copy
from itertools import chain

from torch import Tensor, nn

from .first_run import FirstRun
from .support import becomes_int8

__all__ = ["copy_with_same_tensors", "split_shared", "unsplit_modules"]

#: Calls that cannot get their own are refused beyond this, where a common range costs four bits.
_REFUSED = 16.0


def unsplit_modules(model: nn.Module, run: FirstRun) -> set[nn.Module]:
    """The modules in int8 that a ``forward`` in float calls several times, with results of different sizes."""
    modules = dict(model.named_modules())
    in_float = [path for path, module in modules.items() if getattr(module, "runs_in_float", False)]
    called = {path for caller in in_float for path in run.callees[caller] | run.weights[caller]}
    called = {path for path in called if path in modules and becomes_int8(modules[path])}
    unsplit = {path for path in called if run.distinct_ranges.get(path, 0) > _REFUSED}
    return {modules[path] for path in unsplit if not any(path.startswith(f"{other}.") for other in unsplit)}


def split_shared(model: nn.Module, run: FirstRun) -> None:
    """Gives each place where a module is registered a copy with the same tensors, if its calls cannot share a range."""
    paths = {module: path for path, module in model.named_modules()}
    seen = set[nn.Module]()
    for parent in list(paths):
        for name, child in parent._modules.items():
            if child is None or paths[child] not in run.distinct_ranges:
                continue
            if child in seen:
                parent._modules[name] = copy_with_same_tensors(child)
                path = f"{paths[parent]}.{name}".lstrip(".")
                run.duplicate(paths[child], path, paths[parent])
            seen.add(child)


def copy_with_same_tensors(module: nn.Module) -> nn.Module:
    """A copy of a module with the same parameters and buffers, so that both are trained as one."""
    tensors: list[Tensor] = list(chain(module.parameters(), module.buffers()))
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
