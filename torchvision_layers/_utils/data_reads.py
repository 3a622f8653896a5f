"""The line of a ``forward`` that reads the memory of a tensor by ``.data``."""

import sys
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .source_lines import line_at

__all__ = ["DataReads"]


class DataReads(TorchFunctionMode):
    """Remembers the first line that reads ``.data``."""

    def __init__(self) -> None:
        super().__init__()
        #: ``file:line: code``; empty if there is none.
        self.line = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__get__ and not self.line:  # type: ignore[attr-defined]  # a property of C
            frame = sys._getframe(1)
            self.line = line_at(frame.f_code.co_filename, frame.f_lineno)
        return func(*args, **(kwargs or {}))
