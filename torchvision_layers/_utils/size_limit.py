"""Ends an export with symbolic sizes that torch would reason about for minutes."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._sympy.functions import Mod, PythonMod

from .structure import flatten

__all__ = ["SizeLimit"]

#: Most operations in the formula of one size. Five padded strides of two make 9.
_MAX_OPERATIONS = 16
#: The same with a remainder. Windows in an image that is padded to a multiple of them make 15.
_MAX_WITH_REMAINDER = 12
#: Most remainders in all formulas. Padding height and width to a multiple makes up to four.
_MAX_REMAINDERS = 4


class SizeLimit(TorchFunctionMode):
    """Ends an export once the formulas of sizes are ones that torch reasons about for minutes.

    A ``forward`` that pads its input, or one of its features, to a multiple stays below the limit; one that does so in
    each of its blocks does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_exceeded = False
        self._formulas, self._remainders = set[Any](), set[Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in flatten(result)[0]:
            for size in tensor.shape:
                if isinstance(size, torch.SymInt):
                    self._check(size.node.expr)
        return result

    def _check(self, formula: Any) -> None:
        if formula in self._formulas:
            return
        self._formulas.add(formula)
        remainders = formula.atoms(Mod, PythonMod)
        self._remainders |= remainders
        operations = _MAX_WITH_REMAINDER if remainders else _MAX_OPERATIONS
        if formula.count_ops() > operations or len(self._remainders) > _MAX_REMAINDERS:
            self.is_exceeded = True
            raise RuntimeError(f"the formula of a size is too complex: {formula}")
