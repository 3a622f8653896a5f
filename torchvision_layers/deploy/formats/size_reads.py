"""Decisions of a ``forward`` on sizes, which a trace does not make again."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["SizeReads"]

_DECISIONS = {"__bool__", "__int__", "__index__", "__float__", "__len__", "item"}
_PACKAGE = Path(__file__).parents[2]
#: Code whose decisions on sizes reject inputs and nothing else.
_CHECKS = (Path(torch.__file__).parent, _PACKAGE / "_utils", _PACKAGE / "quantized")


class SizeReads(TorchFunctionMode):
    """Records the sizes from which each decision follows while ``torch.jit.trace`` runs a model.

    Sizes are tensors then, and a decision makes a Python number or truth value of a tensor that was computed from them.
    """

    def __init__(self) -> None:
        super().__init__()
        #: For each decision, the sizes that it follows from.
        self.sizes: list[list[int]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        is_decision = getattr(func, "__name__", "") in _DECISIONS and torch._C._get_tracing_state() is not None
        if is_decision and not _is_check():
            self.sizes.append(_sizes_behind(torch._C._get_value_trace(args[0])))  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))


def _sizes_behind(value: torch._C.Value) -> list[int]:
    """The sizes of tensors from which a number follows."""
    found, stack, seen = list[int](), [value], set[str]()
    while stack:
        value = stack.pop()
        if value.debugName() in seen:
            continue
        seen.add(value.debugName())
        kind: Any = value.type()
        shape = kind.sizes() if isinstance(kind, torch._C.TensorType) else None
        if shape:  # a tensor that is no number
            found += shape
        elif value.node().kind() == "aten::size":
            tensor, dim = value.node().inputs()
            found.append(tensor.type().sizes()[dim.toIValue()])  # type: ignore[attr-defined]
        else:
            stack += value.node().inputs()
    return found


def _is_check() -> bool:
    frame = inspect.currentframe()
    while frame is not None and Path(frame.f_code.co_filename).name in ("size_reads.py", "_tensor.py"):
        frame = frame.f_back
    return frame is not None and any(Path(frame.f_code.co_filename).is_relative_to(folder) for folder in _CHECKS)
