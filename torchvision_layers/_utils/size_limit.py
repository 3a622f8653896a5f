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
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_exceeded = False
        self._accepted = set[Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in flatten(result)[0]:
            for size in tensor.shape:
                if isinstance(size, torch.SymInt):
                    self._check(size.node.expr)
        return result

    def _check(self, formula: Any) -> None:
        if formula in self._accepted:
            return
        if formula.count_ops() > _MAX_OPERATIONS or formula.has(Mod, PythonMod):
            self.is_exceeded = True
            raise RuntimeError(f"the formula of a size is too complex: {formula}")
        self._accepted.add(formula)
