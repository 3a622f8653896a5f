"""Downsampling between the stages of Swin Transformers."""

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from ..._utils.checks import check_dtype, check_input, check_int
from ..._utils.construct import Builder, LayerArgument
from ._version import check_version

__all__ = ["PatchMerging"]


class PatchMerging(nn.Module):
    r"""Halves an image and doubles its channels: :math:`y = W\,n([x_{00}, x_{10}, x_{01}, x_{11}])`.

    From `Swin Transformer <https://arxiv.org/abs/2103.14030>`_ (section 3.1): the channels of each square of 2×2 pixels
    are concatenated, column by column, normalized, and reduced by a linear layer without bias. `Version 2
    <https://arxiv.org/abs/2111.09883>`_ normalizes after the linear layer. An odd height or width is padded with zeros.

    Loads checkpoints of torchvision's ``PatchMerging`` and ``PatchMergingV2``, whose linear layer is called
    ``reduction``; here it is ``linear``. Outputs are bit-equal, but channels are in dimension 1: ``channels_last``
    images are used as they are.

    Args:
        dim: channels of the input.
        norm_layer: called with ``4 * dim``, in version 2 with ``2 * dim``; normalizes the last dimension.
            Default: ``nn.LayerNorm``.
        version: ``1`` or ``2``. Default: ``1``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied. The attributes ``out_channels`` and ``reduction``
    are :math:`2C` and the stride, 2. Errors: ``TypeError`` for an argument of the wrong type; ``ValueError`` for a
    number out of range, an instance with the wrong number of channels, or an input with another number of dimensions
    or channels, or without pixels.

    Shape: input :math:`(N, C, H, W)`, output :math:`(N, 2C, \lceil H / 2 \rceil, \lceil W / 2 \rceil)`, :math:`C`
    being ``dim``.

    Examples::

        >>> enn.PatchMerging(8)(torch.rand(2, 8, 7, 6)).shape
        torch.Size([2, 16, 4, 3])
    """

    def __init__(
        self,
        dim: int,
        norm_layer: LayerArgument = nn.LayerNorm,
        *,
        version: int = 1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_int("dim", dim)
        self.version = check_version(version)
        self.out_channels = 2 * dim
        self.reduction = 2
        self.linear = nn.Linear(4 * dim, 2 * dim, bias=False, device=device, dtype=dtype)
        self.norm = Builder(device, dtype).norm_of_last("norm_layer", norm_layer, 4 * dim if version == 1 else 2 * dim)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.dim, needs_pixels=True)
        check_dtype(input, self.linear.weight)
        squares = _merge(input.permute(0, 2, 3, 1))
        pixels = self.linear(self.norm(squares)) if self.version == 1 else self.norm(self.linear(squares))
        return pixels.permute(0, 3, 1, 2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}reduction.weight"  # torchvision's, timm's and the original's
        if key in state_dict:
            state_dict[f"{prefix}linear.weight"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.dim}, version={self.version}"


def _merge(pixels: Tensor) -> Tensor:
    """The channels of each square of 2×2 pixels, from (N, H, W, C) to (N, H / 2, W / 2, 4 C)."""
    batch, height, width, channels = pixels.shape[0], pixels.shape[1], pixels.shape[2], pixels.shape[3]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    bottom, right = 2 * rows - height, 2 * columns - width
    # A graph for all sizes has no branch on the padding.
    if torch.jit.is_scripting() or torch.compiler.is_compiling() or bottom + right > 0:
        pixels = F.pad(pixels, [0, 0, 0, right, 0, bottom])
    squares = pixels.reshape(batch, rows, 2, columns, 2, channels).permute(0, 1, 3, 4, 2, 5)
    return squares.reshape(batch, rows, columns, 4 * channels)


torch.fx.wrap("_merge")  # sizes decide whether it pads, which a trace cannot know
