"""Self-attention within windows of an image."""

import math

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from ..._utils.checks import check_bool, check_dtype, check_input, check_int, check_probability, check_sizes
from ._version import check_version
from ._windows import at_least_float32, cosines, merge_windows, softmax_in_windows, split_windows

__all__ = ["WindowAttention"]

# Their branches on sizes and dtypes need values, so each stays one node in a traced graph.
for _function in ("at_least_float32", "cosines", "merge_windows", "softmax_in_windows", "split_windows"):
    torch.fx.wrap(_function)


class WindowAttention(nn.Module):
    r"""Self-attention in windows that do not overlap:
    :math:`\mathrm{softmax}(q k^T / \sqrt{d} + B) v`, :math:`B` depending on the relative position.

    From `Swin Transformer <https://arxiv.org/abs/2103.14030>`_ (eq. 4). With ``shift_size``, windows are shifted
    cyclically towards the bottom and right (section 3.2, figure 4), and pixels from opposite borders, which share a
    window, do not attend to each other. A dimension of the image that fits into one window is not shifted.
    `Version 2 <https://arxiv.org/abs/2111.09883>`_ (section 3.2 and 3.3) is scaled cosine attention,
    :math:`\cos(q, k) / \tau + B`, :math:`\tau` learned for each head and at least 0.01, with keys without bias;
    :math:`B` is :math:`16\,\sigma` of a small network of the log-spaced relative position.

    If height or width is not a multiple of the window, the image is padded with zeros at the bottom and right, as in
    torchvision. Padding is attended to, as there. Time and memory are linear in the number of pixels.

    Loads checkpoints of torchvision's ``ShiftedWindowAttention`` and ``ShiftedWindowAttentionV2``, with bit-equal
    outputs, but channels are in dimension 1: ``channels_last`` images are used as they are.

    Args:
        dim: channels of input and output; divisible by ``num_heads``.
        num_heads: number of heads.
        window_size: size of the window, an int or (height, width).
        shift_size: shift of the windows, an int or (height, width), below ``window_size``. Default: ``0``.
        qkv_bias: whether queries, keys and values have a learned bias. Default: ``True``.
        proj_bias: whether the last linear layer has a learned bias. Default: ``True``.
        attention_dropout: probability of zeroing an attention weight, in [0, 1]. Default: ``0.0``.
        dropout: probability of zeroing a value of the output, in [0, 1]. Default: ``0.0``.
        version: ``1`` or ``2``. Default: ``1``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    The attributes ``out_channels`` and ``reduction`` are ``dim`` and 1. Errors: ``TypeError`` for an argument of the
    wrong type; ``ValueError`` for a number out of range, or an input with another number of dimensions or channels, or
    without pixels.

    Shape: input and output are both :math:`(N, C, H, W)`, :math:`C` being ``dim``.

    Examples::

        >>> enn.WindowAttention(32, num_heads=4, window_size=7, shift_size=3)(torch.rand(2, 32, 20, 15)).shape
        torch.Size([2, 32, 20, 15])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int],
        shift_size: int | tuple[int, int] = 0,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        version: int = 1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = self.out_channels = check_int("dim", dim)
        self.reduction = 1
        self.num_heads = check_int("num_heads", num_heads)
        if dim % num_heads != 0:
            raise ValueError(f"dim must be divisible by num_heads, got {dim} and {num_heads}")
        height, width = check_sizes("window_size", window_size, 2)
        down, right = check_sizes("shift_size", shift_size, 2, minimum=0)
        self.window_size, self.shift_size = (height, width), (down, right)
        for size, shift in zip(self.window_size, self.shift_size, strict=True):
            if shift >= size:
                raise ValueError(f"shift_size must be below window_size, got {shift_size} and {window_size}")
        check_bool("qkv_bias", qkv_bias)
        check_bool("proj_bias", proj_bias)
        self.version = check_version(version)

        linear_layer = nn.Linear if version == 1 or not qkv_bias else KeyUnbiasedLinear
        self.qkv = linear_layer(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.attention_dropout = _dropout("attention_dropout", attention_dropout)
        self.dropout = _dropout("dropout", dropout)
        self.relative_position_bias_table: nn.Parameter | None = None
        self.logit_scale: nn.Parameter | None = None
        self.cpb_mlp: nn.Sequential | None = None
        if version == 1:
            table = torch.empty((2 * height - 1) * (2 * width - 1), num_heads, device=device, dtype=dtype)
            self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        else:
            self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10), device=device, dtype=dtype))
            self.cpb_mlp = nn.Sequential(
                nn.Linear(2, 512, device=device, dtype=dtype),
                nn.ReLU(inplace=True),
                nn.Linear(512, num_heads, bias=False, device=device, dtype=dtype),
            )
            offsets = _log_spaced_offsets(self.window_size)
            self.register_buffer("relative_coords_table", offsets.to(device=device, dtype=dtype))
        self.register_buffer("relative_position_index", _offset_index(self.window_size).to(device))

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.dim, needs_pixels=True)
        check_dtype(input, self.proj.weight)
        height, width = input.shape[2], input.shape[3]
        windows = split_windows(input.permute(0, 2, 3, 1), self.window_size, self.shift_size)
        heads = self.qkv(windows).unflatten(-1, (3, self.num_heads, self.dim // self.num_heads))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        logits, bias = self._logits(query, key), self.position_bias()
        weights = softmax_in_windows(logits, bias, value, height, width, self.window_size, self.shift_size)
        output = self.attention_dropout(weights).matmul(value).transpose(1, 2).flatten(2)
        output = self.dropout(self.proj(output))
        return merge_windows(output, height, width, self.window_size, self.shift_size).permute(0, 3, 1, 2)

    def _logits(self, query: Tensor, key: Tensor) -> Tensor:
        if self.logit_scale is None:
            return (query * (self.dim // self.num_heads) ** -0.5).matmul(key.transpose(-2, -1))
        return cosines(query, key) * self.logit_scale.clamp(max=math.log(100.0)).exp()

    def position_bias(self) -> Tensor:
        """The bias of each pair of pixels in a window, of shape (1, heads, pixels, pixels)."""
        if self.cpb_mlp is None:
            return self._of_pairs(self.relative_position_bias_table)
        # In half precision, a value near 16 would have an error of a hundredth.
        return 16 * at_least_float32(self._of_pairs(self.cpb_mlp(self.relative_coords_table).flatten(0, 2))).sigmoid()

    def _of_pairs(self, table: Tensor) -> Tensor:
        pixels = self.window_size[0] * self.window_size[1]
        pairs = table.index_select(0, self.relative_position_index)
        return pairs.view(1, pixels, pixels, self.num_heads).permute(0, 3, 1, 2).contiguous()

    def extra_repr(self) -> str:
        numbers = f"{self.dim}, num_heads={self.num_heads}, window_size={self.window_size}"
        return f"{numbers}, shift_size={self.shift_size}, version={self.version}"


class KeyUnbiasedLinear(nn.Linear):
    """Queries, keys and values of version 2, whose keys have no bias. The ``bias`` of keys is there, but not used."""

    def forward(self, input: Tensor) -> Tensor:
        query, _, value = self.bias.chunk(3)
        return F.linear(input, self.weight, torch.cat([query, torch.zeros_like(query), value]))


def _dropout(argument: str, p: float) -> nn.Module:
    """A dropout of zero would still draw random numbers in TorchScript."""
    return nn.Dropout(p) if check_probability(argument, p) > 0 else nn.Identity()


def _offset_index(window_size: tuple[int, ...]) -> Tensor:
    """For each pair of pixels of a window, the row of their offset in the table of all offsets."""
    height, width = window_size
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    row_offsets = rows[:, None] - rows + height - 1
    column_offsets = columns[:, None] - columns + width - 1
    return (row_offsets * (2 * width - 1) + column_offsets).flatten()


def _log_spaced_offsets(window_size: tuple[int, ...]) -> Tensor:
    """All offsets in a window, relative to the largest one, times 8 and log-spaced (arXiv 2111.09883, eq. 4)."""
    axes = [torch.arange(1.0 - size, size) / max(1, size - 1) * 8 for size in window_size]
    offsets = torch.stack(torch.meshgrid(axes, indexing="ij"), -1)[None]
    return torch.sign(offsets) * torch.log2(offsets.abs() + 1) / 3
