"""Base classes that standalone files contain instead of those of ``torchvision.ops``."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FixedStatistics", "RandomDepth", "Reordering", "stochastic_depth"]


class FixedStatistics(nn.Module):
    """The constant buffers of a frozen batch norm; checkpoints of ``nn.BatchNorm2d`` load."""

    def __init__(self, num_features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.weight)}, eps={self.eps})"


class RandomDepth(nn.Module):
    """The probability of dropping a branch, for each sample (``"row"``) or the whole batch (``"batch"``)."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p}, mode={self.mode})"


class Reordering(nn.Module):
    """An order of dimensions."""

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.dims = dims


def stochastic_depth(input: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """In training drops each sample, or the whole batch, with probability ``p`` and scales the others."""
    if not training or p == 0.0:
        return input
    keep_prob = 1.0 - p
    size = [1] * input.dim()
    if mode == "row":
        size[0] = input.shape[0]
    noise = torch.empty(size, dtype=input.dtype, device=input.device).bernoulli_(keep_prob)
    if keep_prob > 0.0:
        noise.div_(keep_prob)
    return input * noise
