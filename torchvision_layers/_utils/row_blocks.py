"""Rows of a weight in blocks that stay in the cache of a processor while several operators read and write them."""

from torch import Tensor

__all__ = ["row_blocks"]

#: Numbers in a block. Passes over whole weights of hundreds of megabytes take 3 times as long.
_BLOCK = 2**17


def row_blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of ``tensor`` along its first dimension, which together are the tensor."""
    return tensor.split(max(1, _BLOCK * len(tensor) // max(1, tensor.numel())))
