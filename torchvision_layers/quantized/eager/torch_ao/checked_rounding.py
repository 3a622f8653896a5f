"""Refuses activations that became NaN inside an int8 model, before they are rounded."""

from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

from ...finite import check_activation, may_give_nan
from ..wrappers import FloatFallback, FloatOperation, MultipleFloatFallback, is_of_user

__all__ = ["check_roundings"]


def check_roundings(model: nn.Module) -> None:
    """Lets the int8 model check what it rounds, except its inputs, in place, if a part in float may give NaN."""
    if not any(map(_may_give_nan, model.modules())):
        return
    inputs = {*model.children(), *getattr(model, "quants", ())}
    for module in model.modules():
        if type(module) is nnq.Quantize and module not in inputs:
            module.__class__ = CheckedQuantize


def _may_give_nan(module: nn.Module) -> bool:
    if isinstance(module, FloatOperation):
        return may_give_nan(module.extra_repr())
    return isinstance(module, (FloatFallback, MultipleFloatFallback)) and any(map(is_of_user, module.module.modules()))


class CheckedQuantize(nnq.Quantize):
    """A ``Quantize`` that raises ``ValueError`` for NaN."""

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 - the name that torch gives it
        if not torch.jit.is_scripting():
            self.check(X)
        return torch.quantize_per_tensor(X, float(self.scale), int(self.zero_point), self.dtype)

    @torch.jit.unused
    def check(self, tensor: Any) -> None:
        check_activation(tensor)
