"""Local self-attention that replaces a convolution."""

import math
from typing import NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from ..._utils.checks import check_bool, check_groups, check_input, check_int, check_sizes, is_tensor

__all__ = ["MultiHeadedSpatialAttention"]


class _Axis(NamedTuple):
    """The window and the blocks of queries in one dimension of the image."""

    #: Queries per block. Each is compared with all keys that any query of the block sees: small blocks copy more keys,
    #: large blocks compute more products that are masked. With windows of 7, 4 was the fastest of 4 to 8.
    queries: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    #: Position of the first query in the image: the centre of the first window.
    first: int
    #: With dilation, only queries whose distance is a multiple of this share keys.
    phases: int
    #: Distance between the windows of consecutive queries of one phase, in keys of that phase.
    step: int
    #: Number of keys in the window of a block.
    window: int


class MultiHeadedSpatialAttention(nn.Module):
    r"""Stand-alone self-attention: :math:`y_{ij} = \sum_{ab} \mathrm{softmax}_{ab}(q_{ij}^T k_{ab} + q_{ij}^T
    r_{a-i,b-j}) v_{ab}`.

    From `Stand-Alone Self-Attention in Vision Models <https://arxiv.org/abs/1906.05909>`_ (eq. 2 and 3): :math:`a, b`
    run over the window around pixel :math:`i, j`, without the padding. Queries, keys and values are 1×1 convolutions of
    the input, as in the parameter counts of the paper (table 1). Each head learns its own embeddings :math:`r`: the
    first half of the channels encodes the row offset, the second half the column offset. The layer takes the arguments
    of ``nn.Conv2d``, so it can replace a convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; each head has an even number of them.
        kernel_size: size of the window, an int or (height, width).
        stride: distance between queries. Default: ``1``.
        padding: how far windows extend beyond the image on each side; at most
            :math:`d \lfloor (k - 1) / 2 \rfloor`, so that all queries are inside the image. Default: ``0``.
        dilation: spacing between elements of the window. Default: ``1``.
        groups: number of heads; each gets an even number of ``out_channels``. Default: ``1``.
        bias: whether queries, keys and values have a learned bias. Default: ``True``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: ``TypeError`` for an argument of the wrong type; ``ValueError`` for a number out of range, channels that
    cannot be divided among the heads, or an input with another number of dimensions or channels or smaller than the
    window.

    Logits are not scaled, as in the paper. Blocks of 4×4 queries are computed together, so infinite or NaN pixels and
    overflowing logits affect all queries of the blocks whose windows contain them.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')` as for ``nn.Conv2d``. The layer has
    :math:`3 C_{in} C_{out} + C_{out} (k_h + k_w) / 2` parameters, plus :math:`3 C_{out}` with ``bias``.

    Examples::

        >>> enn.MultiHeadedSpatialAttention(16, 32, 7, padding=3, groups=4)(torch.rand(2, 16, 10, 10)).shape
        torch.Size([2, 32, 10, 10])
        >>> attention = partial(enn.MultiHeadedSpatialAttention, kernel_size=7, padding=3, groups=8)
        >>> block = tnn.Bottleneck(64, 64, conv_layer=attention)
    """

    # Without the annotations, torch.jit would treat the named tuples as plain tuples.
    vertical: _Axis
    horizontal: _Axis

    #: Int8 cannot hold its infinite masks.
    needs_float = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels)
        self.out_channels = check_int("out_channels", out_channels)
        self.kernel_size = check_sizes("kernel_size", kernel_size, 2)
        self.stride = check_sizes("stride", stride, 2)
        self.padding = check_sizes("padding", padding, 2, minimum=0)
        self.dilation = check_sizes("dilation", dilation, 2)
        self.groups = check_groups(groups, out_channels=out_channels)
        check_bool("bias", bias)
        self.head_channels = out_channels // groups
        if self.head_channels % 2 != 0:
            raise ValueError(
                f"out_channels / groups must be even, half for rows and half for columns, got {out_channels} / {groups}"
            )
        self.vertical = self._axis(0)
        self.horizontal = self._axis(1)
        self.query = nn.Conv2d(in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype)
        self.key = nn.Conv2d(in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype)
        self.value = nn.Conv2d(in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype)
        half = self.head_channels // 2
        self.row_embedding = nn.Parameter(torch.empty(groups, half, self.kernel_size[0], device=device, dtype=dtype))
        self.column_embedding = nn.Parameter(torch.empty(groups, half, self.kernel_size[1], device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes all parameters again."""
        for conv in (self.query, self.key, self.value):
            conv.reset_parameters()
        for embedding in (self.row_embedding, self.column_embedding):
            nn.init.normal_(embedding, std=self.head_channels**-0.5)

    def _axis(self, dim: int) -> _Axis:
        kernel, stride = self.kernel_size[dim], self.stride[dim]
        padding, dilation = self.padding[dim], self.dilation[dim]
        centre = dilation * ((kernel - 1) // 2)
        if padding > centre:
            raise ValueError(
                f"padding must be at most dilation * ((kernel_size - 1) // 2) = {centre}, so that the centre of "
                f"each window is inside the image, got {padding}"
            )
        common = math.gcd(stride, dilation)
        step = stride // common
        queries = 4
        window = (queries - 1) * step + kernel
        return _Axis(queries, kernel, stride, padding, dilation, centre - padding, dilation // common, step, window)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels)
        _check_fit(input, 2, self.vertical)
        _check_fit(input, 3, self.horizontal)
        rows, columns = _query_count(input.shape[2], self.vertical), _query_count(input.shape[3], self.horizontal)

        # Converted to channels_last once, not in each convolution; vmap does not support memory_format.
        pixels = input.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        query = self._queries(pixels, rows, columns)
        logits = self._relative_logits(query)
        row_logits = _mask(
            _skew(logits[0].transpose(-2, -3), self.vertical).transpose(-2, -3), input, 2, rows, self.vertical
        )
        column_logits = _skew(logits[1], self.horizontal)
        column_logits = _mask(column_logits, input, 3, columns, self.horizontal)

        # One matrix product per block and head: (queries, channels) by (channels, keys).
        offsets = row_logits.unsqueeze(-1) + column_logits.unsqueeze(-2)
        offsets = offsets.flatten(8, 9).flatten(6, 7).flatten(0, 5)
        key = self._windows(self.key(pixels), rows, columns)
        value = self._windows(self.value(pixels), rows, columns)
        scores = torch.baddbmm(offsets, query.flatten(6, 7).flatten(0, 5), key.transpose(1, 2))
        output = torch.bmm(scores.softmax(-1), value)
        return _image(output.view(query.shape), rows, columns, input)

    def _queries(self, input: Tensor, rows: int, columns: int) -> Tensor:
        """Queries as (batch, row phase, row block, column phase, column block, head, row, column, channel)."""
        centres = input[:, :, self.vertical.first :: self.stride[0], self.horizontal.first :: self.stride[1]]
        # The strides must not depend on the size, or graphs would specialize on each remainder.
        centres = centres[:, :, :rows, :columns].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        query = self.query(centres).permute(0, 2, 3, 1)
        height = self.vertical.queries * self.vertical.phases * _blocks(rows, self.vertical)
        width = self.horizontal.queries * self.horizontal.phases * _blocks(columns, self.horizontal)
        # One more than needed: padding is never empty, so a graph for all sizes needs no special case.
        query = F.pad(query, (0, 0, 0, width - columns + 1, 0, height - rows + 1))[:, :height, :width]
        query = query.reshape(
            input.shape[0],
            _blocks(rows, self.vertical),
            self.vertical.queries,
            self.vertical.phases,
            _blocks(columns, self.horizontal),
            self.horizontal.queries,
            self.horizontal.phases,
            self.groups,
            self.head_channels,
        )
        return query.permute(0, 3, 1, 6, 4, 7, 2, 5, 8).contiguous()

    def _relative_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Products of each query with the row embeddings and with the column embeddings."""
        rows, columns = self.kernel_size
        # Each uses half of the channels; a block-diagonal table computes both in one product.
        table = torch.cat([F.pad(self.row_embedding, (0, columns)), F.pad(self.column_embedding, (rows, 0))], 1)
        logits = torch.matmul(query.flatten(6, 7), table).unflatten(6, (self.vertical.queries, self.horizontal.queries))
        return logits[..., :rows], logits[..., rows:]

    def _windows(self, input: Tensor, rows: int, columns: int) -> Tensor:
        """Keys or values in the window of each block: (blocks of all heads, positions, channels)."""
        right = _far_padding(input.shape[3], columns, self.horizontal)
        bottom = _far_padding(input.shape[2], rows, self.vertical)
        pixels = F.pad(input.permute(0, 2, 3, 1), (0, 0, self.horizontal.padding, right, self.vertical.padding, bottom))
        pixels = pixels.unflatten(3, (self.groups, self.head_channels))
        windows = _unfold(_unfold(pixels, 1, rows, self.vertical), 3, columns, self.horizontal)
        return windows.permute(0, 1, 2, 3, 4, 5, 7, 8, 6).flatten(6, 7).flatten(0, 5)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if self.padding != (0, 0):
            parts.append(f"padding={self.padding}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        return ", ".join([*parts, f"groups={self.groups}"])


def _query_count(size: int, axis: _Axis) -> int:
    """Number of queries along ``size`` pixels."""
    return (size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1) // axis.stride + 1


def _blocks(count: int, axis: _Axis) -> int:
    """Number of blocks per phase that hold ``count`` queries."""
    length = axis.queries * axis.phases
    return (count + length - 1) // length


def _keys(count: int, axis: _Axis) -> int:
    """Number of keys that the blocks of one phase see together."""
    return (_blocks(count, axis) - 1) * axis.queries * axis.step + axis.window


def _far_padding(size: int, count: int, axis: _Axis) -> int:
    """Padding that completes the last window, plus a stride: never empty, so that graphs need no special case."""
    end = (axis.phases - 1) * axis.stride + axis.dilation * (_keys(count, axis) - 1) + 1
    return end - axis.padding - size + axis.stride


def _unfold(input: Tensor, dim: int, count: int, axis: _Axis) -> Tensor:
    """Splits dimension ``dim`` into phase and block, and appends a dimension for the position in the block's window."""
    length = axis.dilation * (_keys(count, axis) - 1) + 1
    reach = axis.dilation * (axis.window - 1) + 1
    stride = axis.dilation * axis.step * axis.queries
    phases = [
        input.narrow(dim, phase * axis.stride, length).unfold(dim, reach, stride)[..., :: axis.dilation]
        for phase in range(axis.phases)
    ]
    return torch.stack(phases, dim) if axis.phases > 1 else phases[0].unsqueeze(dim)  # without a copy


def _skew(logits: Tensor, axis: _Axis) -> Tensor:
    """Shifts the logits of each query to its own window inside the window of the block; -inf elsewhere.

    (..., query, offset) becomes (..., query, position). Rows padded to ``window + step`` and reinterpreted as rows of
    ``window`` shift each row by ``step`` relative to the previous one.
    """
    padded = F.pad(logits, (0, axis.window + axis.step - axis.kernel), value=-math.inf)
    return padded.flatten(-2)[..., : axis.queries * axis.window].unflatten(-1, (axis.queries, axis.window))


def _mask(logits: Tensor, input: Tensor, dim: int, count: int, axis: _Axis) -> Tensor:
    """Sets the logits of positions outside the image to -inf, except for queries that are outside it themselves."""
    size = input.shape[dim]
    inside = F.pad(input.new_ones(size), (axis.padding, _far_padding(size, count, axis))) > 0
    padded = axis.queries * axis.phases * _blocks(count, axis)
    beyond = F.pad(input.new_zeros(count), (0, padded - count + 1), value=1.0)[:padded] > 0
    beyond = beyond.reshape(-1, axis.queries, axis.phases).permute(2, 0, 1)
    # (phase, block, query, position)
    mask = ~(_unfold(inside, 0, count, axis).unsqueeze(-2) | beyond.unsqueeze(-1))
    if dim == 2:
        return logits.masked_fill(mask[:, :, None, None, None, :, None], -math.inf)
    return logits.masked_fill(mask[:, :, None, None], -math.inf)


@torch.fx.wrap  # stays one node in a traced graph, so that the choice between layouts survives
def _image(blocks: Tensor, rows: int, columns: int, input: Tensor) -> Tensor:
    """Reassembles an image from blocks of queries, in the memory layout of the input."""
    # Negative padding crops. A slice would be contiguous if there is nothing to crop, a special case for graphs.
    if input.stride(1) == 1:
        pixels = blocks.permute(0, 2, 6, 1, 4, 7, 3, 5, 8).flatten(7, 8).flatten(4, 6).flatten(1, 3)
        pixels = F.pad(pixels, (0, 0, 0, columns - pixels.shape[2], 0, rows - pixels.shape[1]))
        return pixels.contiguous().permute(0, 3, 1, 2)
    channels = blocks.permute(0, 5, 8, 2, 6, 1, 4, 7, 3).flatten(6, 8).flatten(3, 5).flatten(1, 2)
    return F.pad(channels, (0, columns - channels.shape[3], 0, rows - channels.shape[2])).contiguous()


def _check_fit(input: Tensor, dim: int, axis: _Axis) -> None:
    """Raises unless a window fits into the padded image."""
    if is_tensor(input) and _query_count(input.shape[dim], axis) < 1:
        raise ValueError(
            f"input must be at least {axis.dilation * (axis.kernel - 1) + 1 - 2 * axis.padding} in dimension {dim} to "
            f"hold a window, got shape {list(input.shape)}"
        )
