"""Exports for one size of the batch, which is found in the graph afterwards and made variable.

Symbolic sizes take torch more time than all the rest of an export.
"""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from ..._utils.exporting import kept_tensors_allowed, without_partial_graph
from ..._utils.structure import flatten

__all__ = ["export_constant_batch"]

_aten = torch.ops.aten
#: Sizes of batches that are unlikely to divide another size or constant of a model, or 2**63 - 1, an open slice's end.
_PRIMES = (97, 101, 103, 107, 109, 113)


def export_constant_batch(model: nn.Module, inputs: Sequence[Tensor], batched: Sequence[bool]) -> fx.GraphModule:
    """A graph without guards for batches of every size, and for no other size of the inputs in other dimensions.

    Args:
        model: takes the inputs by position and returns a tuple.
        inputs: the tensors.
        batched: for each tensor whether its first dimension is that of the batch.

    Errors: of any type, if the model cannot be exported, or computes with the size of the batch in a way that may
    differ for other sizes. The caller must compare the results for another batch.
    """
    prime = _prime(model, inputs)
    enlarged = [
        _resized(tensor, prime) if has_batch else tensor for tensor, has_batch in zip(inputs, batched, strict=True)
    ]
    with kept_tensors_allowed(), without_partial_graph(), _marked_sizes(model, prime):
        module = torch.export.export(model, tuple(enlarged)).module(check_guards=False)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):  # they check sizes
        hooks.clear()
    _free_batch(module, prime, batched)
    return module


def _prime(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """A size for the batch that divides no size of a parameter, buffer or input."""
    tensors = chain(model.parameters(), model.buffers(), inputs)
    sizes = {size for tensor in tensors for size in tensor.shape if size}
    return next(prime for prime in _PRIMES if all(size % prime for size in sizes))


def _resized(tensor: Tensor, batch: int) -> Tensor:
    """A tensor without values; its memory is not touched."""
    is_last = tensor.dim() == 4 and not tensor.is_contiguous()
    layout = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty((batch, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device, memory_format=layout)


# Tracing


class _DependsOnBatchError(Exception):
    """A ``forward`` computes something with the size of the batch that may differ for other sizes."""


def _refuse(*args: object) -> Any:
    raise _DependsOnBatchError


class _BatchSize(int):
    """A multiple of the size of the batch, in arithmetic and comparisons that are alike for all batches."""

    _unit: int

    def __new__(cls, factor: int, unit: int) -> "_BatchSize":
        size = super().__new__(cls, factor * unit)
        size._unit = unit
        return size

    @property
    def factor(self) -> int:
        return int.__floordiv__(self, self._unit)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, _BatchSize):
            return _BatchSize(self.factor + other.factor, self._unit)
        return _refuse()

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return NotImplemented
        if type(other) is not int or other < 1:
            return _refuse()
        return _BatchSize(self.factor * other, self._unit)

    def __floordiv__(self, other: Any) -> Any:
        quotient, remainder = divmod(self.factor, _divisor(other))
        if remainder:
            return _refuse()
        return quotient if isinstance(other, _BatchSize) else _BatchSize(quotient, self._unit)

    def __mod__(self, other: Any) -> Any:
        return _refuse() if self.factor % _divisor(other) else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and self._difference(other) == 0

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: Any) -> bool:
        return self._difference(other) < 0

    def __le__(self, other: Any) -> bool:
        return self._difference(other) <= 0

    def __gt__(self, other: Any) -> bool:
        return self._difference(other) > 0

    def __ge__(self, other: Any) -> bool:
        return self._difference(other) >= 0

    def __hash__(self) -> int:
        return super().__hash__()

    def _difference(self, other: Any) -> int:
        """A number with the sign that the difference has for every batch of one image or more."""
        if isinstance(other, _BatchSize):
            return self.factor - other.factor
        return 1 if other < self.factor else _refuse()

    __radd__, __rmul__ = __add__, __mul__
    __sub__ = __rsub__ = __rfloordiv__ = __rmod__ = __truediv__ = __rtruediv__ = __divmod__ = __rdivmod__ = _refuse
    __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = __invert__ = __int__ = __float__ = __round__ = _refuse
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __lshift__ = __rlshift__ = _refuse
    __rshift__ = __rrshift__ = _refuse


def _divisor(value: Any) -> int:
    """The divisor of the factor of a batch size in a division by ``value``."""
    if isinstance(value, _BatchSize):
        return value.factor
    return value if isinstance(value, int) and value > 0 else _refuse()


class _Sizes(tuple[int, ...]):
    """In place of ``torch.Size``, which multiplies sizes as plain numbers."""

    def numel(self) -> int:
        return math.prod(self)


class _BatchMarks(TorchFunctionMode):
    """Marks sizes that are multiples of the batch's, and refuses what would hide them or run over all images."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit = unit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__getitem__" and _is_multiple([*args[0].shape, 0][0], self.unit) and _picks_later_item(args[1]):
            _refuse()
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Size):
            return _Sizes(map(self._mark, result))
        marked = self._mark(result)
        is_hidden = isinstance(marked, _BatchSize) and name == "__len__"  # Python makes it a plain number
        if isinstance(result, (tuple, list)):
            is_hidden = len(result) >= self.unit or any(isinstance(self._mark(item), _BatchSize) for item in result)
        return _refuse() if is_hidden else marked

    def _mark(self, value: Any) -> Any:
        return _BatchSize(value // self.unit, self.unit) if _is_multiple(value, self.unit) else value


def _picks_later_item(index: Any) -> bool:
    first = index[0] if isinstance(index, tuple) and index else index
    return type(first) is int and first > 0


def _is_multiple(value: object, unit: int) -> bool:
    return type(value) is int and value > 0 and value % unit == 0


@contextmanager
def _marked_sizes(model: nn.Module, unit: int) -> Iterator[None]:
    """Marks the sizes that the ``forward`` of ``model`` reads, but not those that torch reads."""
    original: Callable[..., Any] = model.forward

    def forward(*args: Tensor) -> Any:
        with _BatchMarks(unit):
            output = original(*args)
        return _refuse() if flatten(output, (_BatchSize,))[0] else output

    forward.__signature__ = original.__signature__  # type: ignore[attr-defined]
    model.forward = forward
    try:
        yield
    finally:
        model.forward = original


# The graph


def _free_batch(module: fx.GraphModule, unit: int, batched: Sequence[bool]) -> None:
    """Puts multiples of the size of the first input with a batch in place of all constants that are multiples of it."""
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    nodes = list(graph.nodes)
    with graph.inserting_after(inputs[-1]):
        batch = graph.call_function(_aten.sym_size.int, (inputs[batched.index(True)], 0))
    batch.meta["val"] = unit
    sizes = {unit: batch}

    def free(value: Any) -> Any:
        if not _is_multiple(value, unit):
            return value
        if value not in sizes:
            with graph.inserting_after(batch):
                sizes[value] = graph.call_function(operator.mul, (batch, value // unit))
            sizes[value].meta["val"] = value
        return sizes[value]

    for node in nodes:
        if node.op == "call_function":
            node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), free)
    module.recompile()
