"""Adaptive pools in ONNX, which has no operator for them.

A pool of ``n`` inputs to ``k`` values takes, as value ``i``, the mean or maximum of the inputs from ``i * n // k`` to
``((i + 1) * n - 1) // k``. The graph computes these bounds from the sizes of its inputs, one dimension after the other.
Pools to one value, and those whose windows have equal sizes that are known, are pools that ONNX has.
"""

import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["pool_translations"]

_aten = torch.ops.aten
_AVERAGES = {_aten.adaptive_avg_pool1d.default, _aten.adaptive_avg_pool2d.default, _aten.adaptive_avg_pool3d.default}
_MAXIMA = {_aten.adaptive_max_pool1d.default, _aten.adaptive_max_pool2d.default, _aten.adaptive_max_pool3d.default}


def pool_translations(graph: fx.Graph) -> dict[Any, Callable[..., Any]]:
    """For ``torch.onnx.export``: the functions that translate the adaptive pools of a graph.

    Errors: ``RuntimeError`` if the graph uses the indices of maxima.
    """
    found = {node.target for node in graph.nodes if node.op == "call_function"}
    for node in graph.nodes:
        if node.target is operator.getitem and node.args[1] == 1 and node.args[0].target in _MAXIMA and node.users:
            raise RuntimeError("ONNX has no operator for the indices of an adaptive max pool: use format='pt2'")
    if not found & (_AVERAGES | _MAXIMA):
        return {}
    pool = _Pool(importlib.import_module("onnxscript").opset18)

    # The exporter sets attributes of these functions, which methods do not have.
    def average(input: Any, output_size: Sequence[Any]) -> Any:
        return pool.average(input, output_size)

    def maximum(input: Any, output_size: Sequence[Any]) -> tuple[Any, Any]:
        result = pool.maximum(input, output_size)
        return result, result  # nothing reads the indices

    return {target: average for target in found & _AVERAGES} | {target: maximum for target in found & _MAXIMA}


class _Pool:
    """Translations of pools to ``output_size`` values in each of the last dimensions."""

    def __init__(self, op: Any) -> None:
        self.op = op

    def average(self, input: Any, output_size: Sequence[Any]) -> Any:
        plain = self._plain(input, output_size, self.op.GlobalAveragePool, self.op.AveragePool)
        if plain is not None:
            return plain
        result = input
        for axis, size in self._axes(input, output_size):
            if isinstance(size, int) and size == 1:
                result = self.op.ReduceMean(result, self.op.Constant(value_ints=[axis]), keepdims=1)
                continue
            result, restore = self._move_last(result, axis, len(input.shape))
            starts, ends, inside = self._windows(result, size)
            shares = self.op.Div(self.op.CastLike(inside, result), self.op.CastLike(self.op.Sub(ends, starts), result))
            result = restore(self.op.MatMul(result, self.op.Transpose(shares, perm=[1, 0])))
        return result

    def maximum(self, input: Any, output_size: Sequence[Any]) -> Any:
        plain = self._plain(input, output_size, self.op.GlobalMaxPool, self._max_pool)
        if plain is not None:
            return plain
        result, last = input, self.op.Constant(value_ints=[-1])
        for axis, size in self._axes(input, output_size):
            result, restore = self._move_last(result, axis, len(input.shape))
            _, _, inside = self._windows(result, size)
            copies = self.op.Unsqueeze(result, self.op.Constant(value_ints=[-2]))
            lowest = self.op.CastLike(self.op.Constant(value_float=float("-inf")), result)
            result = restore(self.op.ReduceMax(self.op.Where(inside, copies, lowest), last, keepdims=0))
        return result

    def _max_pool(self, input: Any, **sizes: Any) -> Any:
        return self.op.MaxPool(input, **sizes)[0]  # without indices

    def _plain(self, input: Any, output_size: Sequence[Any], pool_all: Any, pool: Any) -> Any:
        """The result of an operator of ONNX if the windows are all of the image or of one size; else ``None``."""
        if len(input.shape) != len(output_size) + 2:
            return None
        if all(isinstance(size, int) and size == 1 for size in output_size):
            return pool_all(input)
        pairs = list(zip(input.shape[2:], output_size, strict=True))
        if not all(isinstance(n, int) and isinstance(size, int) and size and n % size == 0 for n, size in pairs):
            return None
        steps = [n // size for n, size in pairs]
        return input if max(steps, default=1) == 1 else pool(input, kernel_shape=steps, strides=steps)

    def _axes(self, input: Any, output_size: Sequence[Any]) -> list[tuple[int, Any]]:
        """The dimensions to pool and their sizes afterwards, as numbers or as values of the graph."""
        first = len(input.shape) - len(output_size)
        sizes = [(first + i, size) for i, size in enumerate(output_size)]
        return [(dim, size) for dim, size in sizes if not isinstance(size, int) or size != input.shape[dim]]

    def _move_last(self, value: Any, axis: int, rank: int) -> tuple[Any, Callable[[Any], Any]]:
        """The value with ``axis`` as its last dimension, and the function that puts that dimension back."""
        order = [dim for dim in range(rank) if dim != axis] + [axis]
        if order == sorted(order):
            return value, lambda result: result
        back = [order.index(dim) for dim in range(rank)]
        return self.op.Transpose(value, perm=order), lambda result: self.op.Transpose(result, perm=back)

    def _windows(self, value: Any, size: Any) -> tuple[Any, Any, Any]:
        """The start and the end of each window, size×1, and whether an input is inside it, size×n."""
        op = self.op
        n = op.Gather(op.Shape(value), op.Constant(value_int=-1), axis=0)
        zero, one, column = op.Constant(value_int=0), op.Constant(value_int=1), op.Constant(value_ints=[1])
        count = op.Constant(value_int=size) if isinstance(size, int) else size
        steps = op.Mul(op.Range(zero, count, one), n)
        starts = op.Unsqueeze(op.Div(steps, count), column)
        reach = op.Sub(op.Add(op.Add(steps, n), count), one)
        ends = op.Unsqueeze(op.Div(reach, count), column)
        positions = op.Range(zero, n, one)
        inside = op.And(op.GreaterOrEqual(positions, starts), op.Less(positions, ends))
        return starts, ends, inside
