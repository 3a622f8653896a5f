"""Inputs of other sizes derived from one example, and a model's outputs for them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["accepts", "find_input_shape", "max_difference", "other_batch", "perturb", "resize", "run_model"]

# Tried in this order: odd sizes expose most; some models accept multiples of their strides or of the example only.
_GROWTH: tuple[Callable[[int, int], int], ...] = (
    lambda size, i: size + 3 + 2 * i,
    lambda size, i: size + 32 * (1 + i),
    lambda size, i: size * (2 + i),
)


def other_batch(example: Tensor, size: int) -> Tensor:
    """A batch of ``size`` that repeats the images of ``example`` in reverse order."""
    images = example.flip(0)
    return torch.cat([images] * (size // len(images) + 1))[:size].contiguous()


def resize(example: Tensor, size: Sequence[int]) -> Tensor:
    """At most two images of ``example`` at another size, with values of ``example`` only."""
    return F.interpolate(example[:2], tuple(size), mode="nearest").contiguous()


def perturb(input: Tensor, scale: float) -> Tensor:
    """``input`` with every value half a quantization step higher or lower, at random."""
    signs = 2 * torch.randint(0, 2, input.shape, generator=torch.Generator().manual_seed(0)) - 1
    return input + signs * (scale / 2)


def find_input_shape(model: nn.Module, example: Tensor) -> tuple[tuple[int | None, ...], Tensor | None]:
    """The input shape of ``model``, ``None`` for each variable size, and an input with other variable image sizes.

    That input is ``None`` if the model accepts one image size only.
    """
    shape: list[int | None] = [None, *example.shape[1:]]
    image_size = list(example.shape[2:])
    all_dims = list(range(len(image_size)))
    groups = [all_dims, *([dim] for dim in all_dims if len(all_dims) > 1)] if 1 <= len(image_size) <= 3 else []
    for dims in groups:
        for grow in _GROWTH:
            input = resize(example, [grow(value, i) if i in dims else value for i, value in enumerate(image_size)])
            if accepts(model, input):
                for dim in dims:
                    shape[2 + dim] = None
                return tuple(shape), input
    return tuple(shape), None


def accepts(model: nn.Module, input: Tensor) -> bool:
    """Whether ``model`` runs on ``input``."""
    try:
        model(input)
    except Exception:  # a forward may raise anything for a size that it does not support
        return False
    return True


def run_model(model: nn.Module, input: Tensor) -> Tensor:
    """The output of ``model``.

    Errors: ``RuntimeError`` if the model cannot run; ``TypeError`` if it does not return one tensor; ``ValueError`` if
    the output is not finite.
    """
    try:
        output = model(input)
    except Exception as error:  # a forward may raise anything
        raise RuntimeError(f"model must run float32 inputs of shape {list(input.shape)}: {error}") from error
    if not isinstance(output, Tensor):
        raise TypeError(f"model must return one tensor, got {type(output).__name__}")
    if not bool(torch.isfinite(output).all()):
        raise ValueError(f"model must give finite outputs, got NaN or infinity for an input of {list(input.shape)}")
    return output


def max_difference(output: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; infinite if the shape or dtype differs, or if it is NaN."""
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return float("inf")
    value = float((output - expected).abs().max())
    return value if value == value else float("inf")
