"""The sizes that an exported program accepts, as expressions that can be pickled."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from ..._utils.exporting import holds

__all__ = ["Guards"]

_PREFIX = "Guard failed: "


@dataclass(frozen=True)
class Guards:
    """Conditions on the sizes of the inputs, in Python."""

    #: Names of the inputs in the conditions.
    names: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()

    @classmethod
    def of(cls, module: nn.Module, names: Sequence[str]) -> "Guards":
        """The conditions in the module that checks them, which holds nothing but a compiled function.

        Its messages contain the conditions.

        Errors: ``RuntimeError`` if they do not, in this version of torch.
        """
        codes = [*_codes(module.forward)]
        messages = [value for code in codes for value in code.co_consts if isinstance(value, str)]
        conditions = [text.removeprefix(_PREFIX) for text in messages if text.startswith(_PREFIX)]
        if not conditions and any("_assert" in code.co_names for code in codes):
            raise RuntimeError("the size checks of torch.export cannot be read in this version of torch")
        return cls(tuple(names), tuple(conditions))

    def function(self) -> Callable[..., None]:
        """A function of the inputs that raises ``ValueError`` for the first condition that does not hold."""
        names = {**SYMPY_INTERP, "math": math, "inf": math.inf}
        checks = [(text, eval(f"lambda {', '.join(self.names)}: {text}", names)) for text in self.conditions]

        def check(*tensors: Tensor) -> None:
            for text, condition in checks:
                if not holds(partial(condition, *tensors)):
                    raise ValueError(f"input must have sizes that the forward of the model supports: {text}")

        return check


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of a function and of the functions that it wraps."""
    if isinstance(function, FunctionType):
        yield function.__code__
        for cell in function.__closure__ or ():
            yield from _codes(cell.cell_contents)
