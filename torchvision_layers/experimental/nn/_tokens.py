"""Checks that layers over tokens share."""

from torch import Tensor, nn

from ..._utils.checks import is_tensor
from ..._utils.construct import Builder, LayerArgument

__all__ = ["build_token_norm", "check_tokens"]


def check_tokens(input: Tensor, channels: int) -> None:
    """Raises unless ``input`` has shape (N, L, ``channels``)."""
    if not is_tensor(input):
        return
    if input.dim() != 3:
        raise ValueError(f"input must have 3 dimensions, got {input.dim()}: shape {list(input.shape)}")
    if input.shape[2] != channels:
        raise ValueError(f"input must have size {channels} in dimension 2, got shape {list(input.shape)}")


def build_token_norm(build: Builder, argument: str, layer: LayerArgument | None, channels: int) -> nn.Module:
    """Builds a normalization over the last dimension, called with ``channels``; ``None`` gives ``nn.Identity``."""
    if layer is None:
        return nn.Identity()
    return build.norm_of_last(argument, layer, channels)
