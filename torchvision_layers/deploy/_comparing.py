"""Inputs of other sizes made from one example, and how far apart two models are on them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["difference", "dynamic_sizes", "nudged", "other_batch", "resized", "run", "takes"]

# Tried in turn: odd sizes find the most; some models take multiples of their strides only, some of the example.
_GROWTH: tuple[Callable[[int, int], int], ...] = (
    lambda size, i: size + 3 + 2 * i,
    lambda size, i: size + 32 * (1 + i),
    lambda size, i: size * (2 + i),
)


def other_batch(example: Tensor, size: int) -> Tensor:
    """A batch of ``size``, of the images of ``example`` in another order."""
    images = example.flip(0)
    return torch.cat([images] * (size // len(images) + 1))[:size].contiguous()


def resized(example: Tensor, size: Sequence[int]) -> Tensor:
    """At most two images of ``example`` in another size, without values that it does not have."""
    return F.interpolate(example[:2], tuple(size), mode="nearest").contiguous()


def dynamic_sizes(model: nn.Module, example: Tensor) -> tuple[list[int | None], Tensor | None]:
    """The sizes of the input, ``None`` for those that the model takes otherwise, and an input of such an image size.

    No such input is given where the model takes one image size.
    """
    sizes: list[int | None] = [None, *example.shape[1:]]
    base = list(example.shape[2:])
    all_dims = list(range(len(base)))
    groups = [all_dims, *([dim] for dim in all_dims if len(all_dims) > 1)] if 1 <= len(base) <= 3 else []
    for dims in groups:
        for grow in _GROWTH:
            size = [grow(value, i) if i in dims else value for i, value in enumerate(base)]
            input = resized(example, size)
            if takes(model, input):
                for dim in dims:
                    sizes[2 + dim] = None
                return sizes, input
    return sizes, None


def takes(model: nn.Module, input: Tensor) -> bool:
    """Whether the model runs on ``input``."""
    try:
        model(input)
    except Exception:  # whatever a forward raises for a size that it is not made for
        return False
    return True


def run(model: nn.Module, input: Tensor) -> Tensor:
    """What the model gives.

    Errors: ``TypeError`` for no tensor, ``ValueError`` for NaN or infinity, ``RuntimeError`` where it cannot run.
    """
    try:
        output = model(input)
    except Exception as error:  # whatever a forward raises
        raise RuntimeError(f"model must run float32 inputs of {list(input.shape)}: {error}") from error
    if not isinstance(output, Tensor):
        raise TypeError(f"model must return one tensor, it returns a {type(output).__name__}")
    if not bool(torch.isfinite(output).all()):
        raise ValueError(
            f"model must give finite outputs, for an input of {list(input.shape)} it gives NaN or infinity"
        )
    return output


def nudged(input: Tensor, step: float) -> Tensor:
    """The input, each value of it half a step higher or lower."""
    signs = 2 * torch.randint(0, 2, input.shape, generator=torch.Generator().manual_seed(0)) - 1
    return input + signs * (step / 2)


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference, infinite for another shape or type or for NaN."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return float("inf")
    value = float((got - expected).abs().max())
    return value if value == value else float("inf")
