"""Exports that avoid symbolic sizes, which take most of the time of an export and may take minutes."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._sympy.functions import Mod, PythonMod

from ..._utils.structure import flatten
from ..checks import check_same_results

__all__ = ["SizeLimit", "StaticExport", "export_static"]

#: Most operations in the formula of one size. Five strides of two, padded, make 9.
_MAX_OPERATIONS = 16
#: Methods and properties whose result does not depend on the size of the tensor.
_SIZE_INDEPENDENT = {"dim", "ndimension", "is_floating_point", "is_complex"}
_SIZE_PROPERTIES = {"shape", "nbytes"}


@dataclass(frozen=True)
class StaticExport:
    """A graph that was exported with constant sizes and holds for all sizes."""

    graph_module: fx.GraphModule
    #: For each input, its sizes; ``None`` for any size.
    input_sizes: list[tuple[int | None, ...]]
    #: For each tensor of the output, the dimensions that grow with the batch.
    output_batch_dims: list[list[int]]


def export_static(model: nn.Module, pair: Sequence[Tensor]) -> StaticExport | None:
    """Exports ``model`` with constant sizes, or returns ``None`` if its graph may depend on them.

    The graph holds for all sizes if no ``forward`` reads the size of a tensor, and if it computes the same as the model
    for a larger batch of smaller images.

    Args:
        model: a copy, in eval mode, that takes ``pair`` as positional inputs.
        pair: inputs with a batch of two.
    """
    probe = copy.deepcopy(model)  # a forward may change it
    others = [_with_other_sizes(tensor) for tensor in pair]
    try:
        with torch.no_grad():
            with _SizeReads(probe) as reads:
                expected = probe(*others)
            if reads.is_found or not isinstance(expected, Tensor):
                return None
            module = torch.export.export(model, tuple(pair)).module(check_guards=False)
            for hooks in (module._forward_pre_hooks, module._forward_hooks):  # they check the sizes
                hooks.clear()
            outputs = module(*others)
            check_same_results(outputs, expected, "a graph with constant sizes differs from the model")
    except Exception:  # the export with symbolic sizes explains what is wrong, if anything is
        return None
    sizes = [
        tuple(None if i != 1 or _accepts_channels(probe, others, k) else size for i, size in enumerate(tensor.shape))
        for k, tensor in enumerate(pair)
    ]
    return StaticExport(module, sizes, _batch_dims(module, flatten(outputs)[0]))


def _with_other_sizes(tensor: Tensor) -> Tensor:
    """Images of half the height and width, and three instead of two."""
    if tensor.dim() and len(tensor) == 2:
        tensor = torch.cat([tensor, tensor[:1]])
    for dim in range(2, tensor.dim()):
        size = tensor.shape[dim]
        tensor = tensor.narrow(dim, 0, size // 2) if size > 1 else torch.cat([tensor, tensor], dim)
    return tensor.clone()


def _accepts_channels(model: nn.Module, inputs: list[Tensor], index: int) -> bool:
    """Whether the model also takes the input at ``index`` with another size in dimension 1."""
    widened = list(inputs)
    widened[index] = torch.cat([inputs[index], inputs[index]], 1)
    try:
        with torch.no_grad():
            model(*widened)
    except Exception:
        return False
    return True


def _batch_dims(module: fx.GraphModule, outputs: list[Tensor]) -> list[list[int]]:
    """Dimensions with size two in the graph's own output and three in ``outputs``; all others shrink or stay."""
    values = list[Tensor]()
    fx.map_arg(module.graph.output_node().args, lambda node: values.append(node.meta["val"]))
    return [
        [dim for dim in range(value.dim()) if (value.shape[dim], output.shape[dim]) == (2, 3)]
        for value, output in zip(values, outputs, strict=True)
    ]


class _SizeReads(TorchFunctionMode):
    """Finds out whether a ``forward`` reads the size of a tensor that is not a parameter or buffer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.is_found = False
        self._weights = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _is_number(result) and not (args and id(args[0]) in self._weights):
            self.is_found |= _depends_on_size(func)
        return result


def _is_number(result: object) -> bool:
    if isinstance(result, (tuple, list)):
        return any(isinstance(item, (bool, int, float)) for item in result)
    return isinstance(result, (bool, int, float))


def _depends_on_size(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return func.__self__.__name__ in _SIZE_PROPERTIES
    return name not in _SIZE_INDEPENDENT


class SizeLimit(TorchFunctionMode):
    """Ends an export with an error once its sizes are formulas that torch reasons about for minutes.

    These are long formulas, and those with a remainder: a ``forward`` that pads to a multiple of a window, in each of
    its blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_exceeded = False
        self._checked = set[Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in flatten(result)[0]:
            for size in tensor.shape:
                if isinstance(size, torch.SymInt):
                    self._check(size.node.expr)
        return result

    def _check(self, formula: Any) -> None:
        if formula in self._checked:
            return
        self._checked.add(formula)
        if formula.count_ops() > _MAX_OPERATIONS or formula.has(Mod, PythonMod):
            self.is_exceeded = True
            raise RuntimeError(f"sizes of the export are too complex: {formula}")
