"""Shifted windows of an image, and which of their pixels may attend to each other.

Images are (N, H, W, C); windows are (N · windows, pixels, C).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["at_least_float32", "cosines", "merge_windows", "softmax_in_windows", "split_windows"]


def split_windows(image: Tensor, window_size: tuple[int, int], shift_size: tuple[int, int]) -> Tensor:
    """Windows of the padded and shifted image."""
    batch, height, width, channels = image.shape[0], image.shape[1], image.shape[2], image.shape[3]
    rows, columns = _count(height, window_size[0]), _count(width, window_size[1])
    bottom, right = rows * window_size[0] - height, columns * window_size[1] - width
    # A graph for all sizes has no branch on the padding.
    if torch.jit.is_scripting() or torch.compiler.is_compiling() or bottom + right > 0:
        image = F.pad(image, [0, 0, 0, right, 0, bottom])
    image = _roll(image, -_shift(rows, shift_size[0]), -_shift(columns, shift_size[1]))
    squares = image.view(batch, rows, window_size[0], columns, window_size[1], channels).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(batch * rows * columns, window_size[0] * window_size[1], channels)


def merge_windows(
    windows: Tensor, height: int, width: int, window_size: tuple[int, int], shift_size: tuple[int, int]
) -> Tensor:
    """The image of this size, without padding: the inverse of :func:`split_windows`."""
    rows, columns = _count(height, window_size[0]), _count(width, window_size[1])
    batch, channels = windows.shape[0] // (rows * columns), windows.shape[2]
    squares = windows.view(batch, rows, columns, window_size[0], window_size[1], channels).permute(0, 1, 3, 2, 4, 5)
    image = squares.reshape(batch, rows * window_size[0], columns * window_size[1], channels)
    image = _roll(image, _shift(rows, shift_size[0]), _shift(columns, shift_size[1]))
    if torch.compiler.is_compiling():
        # A slice would make a graph depend on whether the image was padded.
        lines = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
        return image.index_select(1, lines[0]).index_select(2, lines[1])
    return image[:, :height, :width].contiguous()


def softmax_in_windows(
    logits: Tensor,
    bias: Tensor,
    value: Tensor,
    height: int,
    width: int,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
) -> Tensor:
    """The attention weights in all windows of an image of this size, in the dtype of ``value``.

    A shift brings pixels from opposite borders together in the last window of a row or column. Such pairs get -100, as
    in torchvision.
    """
    biased = logits + bias
    rows, columns = _count(height, window_size[0]), _count(width, window_size[1])
    down, right = _shift(rows, shift_size[0]), _shift(columns, shift_size[1])
    if down + right > 0:
        vertical = _are_apart(logits, rows, window_size[0], down)[:, None, :, None, :, None]
        horizontal = _are_apart(logits, columns, window_size[1], right)[None, :, None, :, None, :]
        mask = (vertical | horizontal).flatten(4).flatten(2, 3).flatten(0, 1).unsqueeze(1).to(biased.dtype) * -100
        biased = (biased.unflatten(0, (-1, rows * columns)) + mask).flatten(0, 1)
    return biased.softmax(-1).to(value.dtype)


def _are_apart(logits: Tensor, count: int, size: int, shift: int) -> Tensor:
    """Whether two lines of a window come from opposite borders, of shape (windows, lines, lines)."""
    last = torch.arange(count * size, device=logits.device).view(count, size) >= count * size - shift
    return last.unsqueeze(2) != last.unsqueeze(1)


def cosines(query: Tensor, key: Tensor) -> Tensor:
    """Between all vectors of both, in float32 for half precision. A zero vector, as of padding, has a cosine of 0."""
    return _directions(query).matmul(_directions(key).transpose(-2, -1))


def _directions(vectors: Tensor) -> Tensor:
    vectors = at_least_float32(vectors)
    # normalize returns zero for a zero vector; only gradients need the masks, which take longer than the rest.
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return F.normalize(vectors, dim=-1)
    # The gradient of a zero vector would be near 1e12, and its second derivative would not be finite.
    is_zero = vectors.eq(0).all(-1, keepdim=True)
    return F.normalize(vectors.masked_fill(is_zero, 1), dim=-1).masked_fill(is_zero, 0)


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if _is_half(x) else x


def _is_half(x: Tensor) -> bool:
    return x.dtype == torch.float16 or x.dtype == torch.bfloat16


def _count(size: int, window: int) -> int:
    """The number of windows, the last one padded."""
    return (size + window - 1) // window


def _shift(count: int, shift: int) -> int:
    """The shift of this number of windows: one window alone is not shifted."""
    return shift if count > 1 else 0


def _roll(image: Tensor, rows: int, columns: int) -> Tensor:
    return image if rows == 0 and columns == 0 else torch.roll(image, (rows, columns), (1, 2))
