"""Weights that are rounded before the conversion."""

import torch
import torch.ao.quantization as taoq
from torch import Tensor, nn

__all__ = ["set_rounded_weight"]


class _FixedSteps(taoq.PerChannelMinMaxObserver):
    """Returns the steps that the weights are multiples of."""

    steps: Tensor

    def forward(self, x_orig: Tensor) -> Tensor:
        return x_orig

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # like torch itself
        return self.steps, torch.zeros_like(self.steps, dtype=torch.int64)


def set_rounded_weight(module: nn.Module, weight: Tensor, steps: Tensor) -> None:
    """Gives a prepared module a weight of whole steps, which the conversion keeps."""
    observer = _FixedSteps(dtype=torch.qint8, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric)
    observer.steps = steps
    module.weight = nn.Parameter(weight)
    module.qconfig = module.qconfig._replace(weight=lambda: observer)  # type: ignore[union-attr, operator]
