"""Embeddings of the positions of pixels."""

import math

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from ..._utils.checks import (
    check_bool,
    check_dtype,
    check_floating,
    check_input,
    check_int,
    check_number,
    check_sizes,
    is_tensor,
)

__all__ = ["PositionEmbedding2d", "SinePositionEmbedding2d"]


class PositionEmbedding2d(nn.Module):
    r"""Adds a learned vector for each position: :math:`y_{cij} = x_{cij} + E_{cij}`.

    From `An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>`_ (eq. 1; section 3.2 for other sizes). The
    embedding is added as it is to images of ``grid_size``, and resampled bicubically for images of other sizes.

    Args:
        channels: channels of input and output.
        grid_size: height and width of the images in training, an int or (height, width).
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    The parameter ``weight`` is :math:`(1, C, H, W)`, drawn from a normal distribution with a standard deviation of
    0.02, cut at ±2. Errors: ``TypeError`` for an argument of the wrong type, or an input of another dtype;
    ``ValueError`` for a number out of range, or an input with another number of dimensions or channels, or without
    pixels.

    Shape: input and output are both :math:`(N, C, H, W)`, of any height and width.

    Examples::

        >>> embedding = enn.PositionEmbedding2d(8, grid_size=14)
        >>> embedding(torch.rand(2, 8, 14, 14)).shape, embedding(torch.rand(2, 8, 20, 16)).shape
        (torch.Size([2, 8, 14, 14]), torch.Size([2, 8, 20, 16]))
    """

    def __init__(
        self,
        channels: int,
        grid_size: int | tuple[int, int],
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = self.out_channels = check_int("channels", channels)
        self.reduction = 1
        height, width = check_sizes("grid_size", grid_size, 2)
        self.grid_size = (height, width)
        self.weight = nn.Parameter(torch.empty(1, channels, height, width, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if not torch.jit.is_scripting() and not torch.compiler.is_compiling():  # noqa: SIM102  # as in attention.py
            # The usual case: such an input would pass the checks below, which take longer.
            if is_tensor(input) and input.shape[1:] == weight.shape[1:] and input.dtype == weight.dtype:
                return input + weight
        check_input(input, 4, self.channels, needs_pixels=True)
        check_dtype(input, weight)
        return input + _resampled(weight, input.shape[2], input.shape[3])

    def extra_repr(self) -> str:
        return f"{self.channels}, grid_size={self.grid_size}"


def _resampled(embedding: Tensor, height: int, width: int) -> Tensor:
    # A graph for all sizes has no branch on them. There, resampling to the same size changes nothing.
    is_graph = torch.jit.is_scripting() or torch.compiler.is_compiling()
    if not is_graph and embedding.shape[2] == height and embedding.shape[3] == width:
        return embedding
    return F.interpolate(embedding, (height, width), mode="bicubic", align_corners=False)


class SinePositionEmbedding2d(nn.Module):
    r"""Adds sines and cosines of the row and column of each pixel, without parameters.

    From `End-to-End Object Detection with Transformers <https://arxiv.org/abs/2005.12872>`_ (appendix A.4), which
    extends `Attention Is All You Need <https://arxiv.org/abs/1706.03762>`_ (section 3.5) to images. The first half of
    the channels encodes the row and the second half the column; with :math:`p` the number of the row or column,
    counted from 1, and :math:`d` half of the channels,

    .. math::
        E_{2k} = \sin(p / T^{2k / d}), \qquad E_{2k + 1} = \cos(p / T^{2k / d}).

    With ``normalize``, :math:`p` is divided by that of the last row or column and multiplied by :math:`2 \pi`. With a
    ``mask``, only pixels outside the padding are counted, so images of different sizes may share a batch.

    Args:
        channels: channels of input and output; divisible by 4.
        temperature: :math:`T`, positive. Default: ``10000.0``.
        normalize: whether positions are relative to the size of the image, as in the models of the paper.
            Default: ``True``.
        device: accepted for a uniform signature; the layer has no parameters.
        dtype: accepted for a uniform signature; the layer has no parameters.

    Errors: ``TypeError`` for an argument of the wrong type, an input that is not floating-point, or a mask that is not
    boolean; ``ValueError`` for a number out of range, an input with another number of dimensions or channels, or
    without pixels, or a mask of another size.

    Shape: input and output are both :math:`(N, C, H, W)`; ``mask`` is :math:`(N, H, W)` and true for padding.

    Examples::

        >>> enn.SinePositionEmbedding2d(8)(torch.zeros(2, 8, 20, 16)).shape
        torch.Size([2, 8, 20, 16])
    """

    def __init__(
        self,
        channels: int,
        temperature: float = 10000.0,
        normalize: bool = True,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = self.out_channels = check_int("channels", channels)
        self.reduction = 1
        if channels % 4 != 0:
            raise ValueError(f"channels must be divisible by 4, sine and cosine of row and column, got {channels}")
        self.temperature = check_number("temperature", temperature)
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.normalize = check_bool("normalize", normalize)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        check_input(input, 4, self.channels, needs_pixels=True)
        check_floating(input)
        if mask is None:
            return input + _sines(input, self.temperature, self.normalize)
        _check_mask(mask, input)
        return input + _masked_sines(input, mask, self.temperature, self.normalize)

    def extra_repr(self) -> str:
        return f"{self.channels}, temperature={self.temperature}, normalize={self.normalize}"


def _sines(input: Tensor, temperature: float, normalize: bool) -> Tensor:
    """The embedding of all pixels, of shape (1, channels, height, width)."""
    dtype = _dtype(input)
    rows = torch.arange(1, input.shape[2] + 1, dtype=dtype, device=input.device)[None, :, None]
    columns = torch.arange(1, input.shape[3] + 1, dtype=dtype, device=input.device)[None, None, :]
    return _encode(rows, columns, input, temperature, normalize)


def _masked_sines(input: Tensor, mask: Tensor, temperature: float, normalize: bool) -> Tensor:
    """The embedding of each image, counting the pixels outside the padding."""
    inside = (~mask).to(_dtype(input))
    return _encode(inside.cumsum(1), inside.cumsum(2), input, temperature, normalize)


torch.fx.wrap("_resampled")
torch.fx.wrap("_sines")
torch.fx.wrap("_masked_sines")
torch.fx.wrap("_check_mask")


def _dtype(input: Tensor) -> torch.dtype:
    """Positions are exact up to 2^24 in float32, but only up to 256 in bfloat16."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _encode(rows: Tensor, columns: Tensor, input: Tensor, temperature: float, normalize: bool) -> Tensor:
    if normalize:  # 1e-6 as in the code of the paper, for an image that is all padding
        rows = rows / (rows[:, -1:, :] + 1e-6) * (2 * math.pi)
        columns = columns / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
    half, quarter = input.shape[1] // 2, input.shape[1] // 4
    exponents = torch.arange(quarter, dtype=rows.dtype, device=rows.device) * 2 / half
    periods = torch.pow(temperature, exponents)
    parts: list[Tensor] = []
    for positions in (rows, columns):
        angles = positions[..., None] / periods
        part = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
        parts.append(part.expand(part.shape[0], input.shape[2], input.shape[3], half))
    return torch.cat(parts, -1).permute(0, 3, 1, 2).to(input.dtype)


def _check_mask(mask: Tensor, input: Tensor) -> None:
    if not is_tensor(input):
        return
    if not torch.jit.is_scripting() and not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a boolean tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a boolean tensor, got {mask.dtype}")
    shape = [input.shape[0], input.shape[2], input.shape[3]]
    if list(mask.shape) != shape:
        raise ValueError(f"mask must have the batch, height and width of input, {shape}, got {list(mask.shape)}")
