"""Image patches as tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.checks import check_bool, check_input, check_int, is_tensor
from ..._utils.construct import Builder, LayerArgument
from ._tokens import build_token_norm

__all__ = ["PatchEmbedding"]


class PatchEmbedding(nn.Module):
    r"""Splits an image into square patches and maps each linearly to a token: :math:`z_p = E x_p + b`.

    From `An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>`_ (section 3.1, eq. 1, without the position
    embedding). With a ``stride`` below ``patch_size``, patches overlap as in
    `SegFormer <https://arxiv.org/abs/2105.15203>`_ (section 3.1), whose stages use ``patch_size=7, stride=4,
    padding=3`` and ``patch_size=3, stride=2, padding=1``, each with ``norm_layer=nn.LayerNorm``. Loads checkpoints of
    timm's ``PatchEmbed``; keys of a plain convolution, such as torchvision's ``conv_proj``, are accepted too.

    Args:
        in_channels: channels of the image.
        embed_dim: channels of each token.
        patch_size: height and width of a patch in pixels.
        stride: distance between patches, at most ``patch_size``. Default: ``None``, ``patch_size``: no overlap.
        padding: zeros around the image, fewer than ``patch_size``. Default: ``0``.
        bias: whether each channel of a token has a learned bias. Default: ``True``.
        norm_layer: normalizes each token, called with ``embed_dim``; ``None`` for none. Default: ``None``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: ``TypeError`` for an argument of the wrong type or a norm over another dimension than the last;
    ``ValueError`` for a number out of range, or an image with another number of dimensions or channels or with rows or
    columns that belong to no patch: without overlap, height and width must be multiples of ``patch_size``.

    Shape: input :math:`(N, C, H, W)`, output :math:`(N, H' W', D)`, where :math:`D` is ``embed_dim`` and
    :math:`H' = \lfloor (H + 2\,\text{padding} - \text{patch\_size}) / \text{stride} \rfloor + 1`.

    Examples::

        >>> enn.PatchEmbedding(3, 192, 16)(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 24, 192])
        >>> enn.PatchEmbedding(3, 32, 7, stride=4, padding=3)(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 384, 32])
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        patch_size: int,
        *,
        stride: int | None = None,
        padding: int = 0,
        bias: bool = True,
        norm_layer: LayerArgument | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels)
        self.embed_dim = check_int("embed_dim", embed_dim)
        self.patch_size = check_int("patch_size", patch_size)
        self.stride = patch_size if stride is None else check_int("stride", stride)
        if self.stride > patch_size:
            raise ValueError(f"stride must be at most patch_size={patch_size}, so that no pixel is lost, got {stride}")
        self.padding = check_int("padding", padding, minimum=0)
        if padding >= patch_size:
            raise ValueError(f"padding must be less than patch_size={patch_size}, got {padding}")
        self.out_channels, self.reduction = embed_dim, self.stride
        self.proj = nn.Conv2d(
            in_channels,
            embed_dim,
            patch_size,
            self.stride,
            padding,
            bias=check_bool("bias", bias),
            device=device,
            dtype=dtype,
        )
        self.norm = build_token_norm(Builder(device, dtype), "norm_layer", norm_layer, embed_dim)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels)
        if is_tensor(input):
            self._check_side("height", input.shape[2])
            self._check_side("width", input.shape[3])
        return self.norm(self.proj(input).flatten(2).transpose(1, 2))

    def _check_side(self, name: str, size: int) -> None:
        """Raises unless each pixel along a side is in a patch."""
        rest = (size + 2 * self.padding - self.patch_size) % self.stride
        if size + 2 * self.padding < self.patch_size or rest > self.padding:
            if self.padding == 0 and self.stride == self.patch_size:
                raise ValueError(
                    f"input must have a {name} that is a multiple of patch_size={self.patch_size}, got {size}: resize "
                    "or pad the images"
                )
            raise ValueError(
                f"input must have a {name} that patches of {self.patch_size} pixels with stride={self.stride} and "
                f"padding={self.padding} cover, got {size}: resize or pad the images"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for key in ("weight", "bias"):  # a convolution in place of this layer has these keys
            if prefix + key in state_dict:
                state_dict[f"{prefix}proj.{key}"] = state_dict.pop(prefix + key)
        super()._load_from_state_dict(state_dict, prefix, *args)
