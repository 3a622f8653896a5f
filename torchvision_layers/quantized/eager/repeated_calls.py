"""Modules that are called several times with results of different sizes: each call gets a module of its own."""

import copy
from collections import defaultdict
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from ..._utils.inputs import Inputs
from ..._utils.modules import has_hooks
from ..._utils.scaling import CONV_AND_LINEAR
from ..._utils.structure import flatten
from .first_run import FirstRun

__all__ = ["copy_with_same_tensors", "find_distinct_ranges", "split_shared", "unsplit_modules"]

#: Calls whose results differ by more in size get ranges of their own: a common one costs the smaller results two bits.
_SPLIT = 4.0
#: Calls that cannot get their own are refused beyond this, where a common range costs four bits.
_REFUSED = 16.0


def find_distinct_ranges(model: nn.Module, inputs: Inputs, run: FirstRun) -> dict[str, float]:
    """The modules, with layers that become int8, whose calls return values of different sizes, or call such a module.

    The values are the ratios of the largest result to the smallest, by path.
    """
    sizes = defaultdict[str, list[float]](list, {path: list(values) for path, values in run.results.items()})

    def record(module: nn.Module, args: object, output: object, path: str) -> None:
        values = [tensor for tensor in flatten(output)[0] if tensor.is_floating_point() and tensor.numel()]
        if values:
            sizes[path].append(max(float(tensor.detach().abs().max()) for tensor in values))

    repeated = {path: module for path, module in model.named_modules() if run.calls[path] > 1 and _may_split(module)}
    handles = [module.register_forward_hook(partial(record, path=path)) for path, module in repeated.items()]
    if not handles:
        return {}
    try:
        with torch.no_grad():
            inputs.run(model)
    finally:
        for handle in handles:
            handle.remove()
    ratios = {path: max(values) / max(min(values), 1e-30) for path, values in sizes.items()}
    below = {path: [r for inner, r in ratios.items() if f"{inner}.".startswith(f"{path}.")] for path in repeated}
    return {path: max(values) for path, values in below.items() if values and max(values) > _SPLIT}


def _may_split(module: nn.Module) -> bool:
    has_layers = any(isinstance(m, (*CONV_AND_LINEAR, nn.MultiheadAttention)) for m in module.modules())
    return has_layers and not any(map(has_hooks, module.modules()))


def unsplit_modules(model: nn.Module, run: FirstRun) -> set[nn.Module]:
    """The modules that a ``forward`` in float calls several times, with results of different sizes."""
    modules = dict(model.named_modules())
    in_float = [path for path, module in modules.items() if getattr(module, "runs_in_float", False)]
    called = {path for caller in in_float for path in run.callees[caller] | run.weights[caller]}
    unsplit = {path for path in called if run.distinct_ranges.get(path, 0) > _REFUSED and path in modules}
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
