"""Modules that are excluded from int8, and the outputs that need not be rounded between two of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..._utils.inputs import Inputs
from ..._utils.structure import flatten
from ..report_row import Int8Support
from .support import int8_support

__all__ = ["exclude_", "mark_float_chains_"]


def exclude_(model: nn.Module, excluded: Mapping[str, str]) -> None:
    """Marks modules to stay in float with all below them, in place."""
    for path, by in excluded.items():
        for module in model.get_submodule(path).modules():
            module.stays_in_float, module.excluded_by = True, by  # type: ignore[assignment]  # plain attributes


@torch.no_grad()
def mark_float_chains_(model: nn.Module, inputs: Inputs) -> None:
    """Marks, in place, each excluded module whose outputs may stay in float, as they are for a batch.

    Without that, all modules could be excluded and eight bits would still round every tensor between two of them.

    Args:
        model: fused, without observers.
        inputs: the batch.
    """
    excluded = {module for module in model.modules() if hasattr(module, "excluded_by")}
    if not excluded:
        return
    outermost = excluded - {child for module in excluded for child in module.modules() if child is not module}
    fallbacks = {module for module in model.modules() if int8_support(module) is Int8Support.FLOAT_FALLBACK}
    reads = _Reads()
    handles = []
    for module in outermost | fallbacks:
        handles.append(module.register_forward_pre_hook(reads.enter))
        handles.append(module.register_forward_hook(reads.leave, always_call=True))
    try:
        with reads:
            inputs.run(model)
    finally:
        for handle in handles:
            handle.remove()
    for module in outermost & reads.called - reads.are_read:
        module.returns_float = True  # type: ignore[assignment]  # a plain attribute


class _Reads(TorchFunctionMode):
    """Records the modules whose outputs a function reads that none of these modules calls."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[nn.Module] = set()
        self.are_read: set[nn.Module] = set()
        self._depth = 0

    def enter(self, module: nn.Module, args: object) -> None:
        self._depth += 1

    def leave(self, module: nn.Module, args: object, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.called.add(module)
            for tensor in flatten(output)[0]:
                tensor.returned_by = module

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_size = getattr(func, "__name__", "") in ("__get__", "dim", "size")
        if self._depth == 0 and not is_size:
            for tensor in flatten((args, kwargs))[0]:
                if isinstance(tensor, Tensor) and hasattr(tensor, "returned_by"):
                    self.are_read.add(tensor.returned_by)
        return func(*args, **kwargs)
