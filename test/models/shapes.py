"""Images inside a drawn model, with their channels and their sizes for each size of the input."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Map", "Sizes", "pair", "pooled", "smallest", "windowed"]

#: Height and width for each size of the input, in the order of ``Model.sizes``.
Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Map:
    """A variable of a ``forward`` that holds an image of ``channels``."""

    name: str
    channels: int
    sizes: Sizes

    def is_like(self, other: "Map") -> bool:
        """Whether the two can be added."""
        return (self.channels, self.sizes) == (other.channels, other.sizes)


def pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def windowed(sizes: Sizes, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Sizes:
    """The sizes after a convolution or a pooling; those of a ``"same"`` padding stay."""
    if padding == "same":
        return sizes
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = pair(kernel), pair(stride), pair(padding), pair(dilation)
    return tuple(
        ((height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1)
        for height, width in sizes
    )


def pooled(sizes: Sizes) -> Sizes:
    """The sizes after halving, rounded up, as a kernel of 3 with a padding of 1 and a stride of 2 does."""
    return windowed(sizes, 3, 2, 1)


def smallest(sizes: Sizes) -> int:
    return min(min(size) for size in sizes)
