"""Checks that layers over tokens share."""

from torch import Tensor, nn

from ..._utils.checks import is_tensor
from ..._utils.construct import Builder, LayerArgument

__all__ = ["build_token_norm", "check_tokens"]

_CHANNELS_SECOND = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm)


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
    norm = build.norm(argument, layer, channels)
    # These would normalize over dimension 1, the tokens, without an error if there are as many tokens as channels.
    if isinstance(norm, _CHANNELS_SECOND):
        raise TypeError(
            f"{argument} must normalize the last dimension, as nn.LayerNorm does, got {type(norm).__name__}"
        )
    return norm
