"""Ends an export with symbolic sizes that torch would reason about for minutes."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._sympy.functions import Mod, PythonMod

from .structure import flatten

__all__ = ["SizeLimit"]

#: Most operations in the formula of one size. Five padded strides of two make 9.
_MAX_OPERATIONS = 16


class SizeLimit(TorchFunctionMode):
    """Ends an export once the formula of a size is one that torch reasons about for minutes.

    Such formulas are long, or contain a remainder: a ``forward`` pads to a multiple of a window in each of its blocks.

    Args:
        complex_sizes: how many sizes may have such a formula. A ``forward`` that pads once has about four of them.
            Default: none.
    """

    def __init__(self, complex_sizes: int = 0) -> None:
        super().__init__()
        self.is_exceeded = False
        self._remaining = complex_sizes
        self._seen = set[Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in flatten(result)[0]:
            for size in tensor.shape:
                if isinstance(size, torch.SymInt):
                    self._check(size.node.expr)
        return result

    def _check(self, formula: Any) -> None:
        if formula in self._seen:
            return
        self._seen.add(formula)
        if formula.count_ops() > _MAX_OPERATIONS or formula.has(Mod, PythonMod):
            self._remaining -= 1
            if self._remaining < 0:
                self.is_exceeded = True
                raise RuntimeError(f"the formula of a size is too complex: {formula}")
