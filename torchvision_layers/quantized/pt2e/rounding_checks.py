"""Refuses activations that became NaN inside an int8 graph, before they are rounded."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from ..finite import check_activation

__all__ = ["RoundingChecks"]


class RoundingChecks(TorchDispatchMode):
    """Raises ``ValueError`` for NaN in what the operators of a graph quantize."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "quantized_decomposed" and func._schema.name.endswith("::quantize_per_tensor"):
            check_activation(args[0])
        return func(*args, **(kwargs or {}))
