"""The levels of a pyramid: images of several sizes in one batch, the finest first."""

from collections import OrderedDict
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._utils.checks import check_input, is_tensor

__all__ = ["Levels", "check_levels", "level_names", "resize", "with_names"]

#: A list, or an ``OrderedDict`` like that of torchvision's backbones. TorchScript takes both.
Levels: TypeAlias = list[Tensor] | dict[str, Tensor]


def check_levels(input: Levels, channels: list[int]) -> list[Tensor]:
    """Returns a new list of the levels.

    Errors: ``TypeError`` if ``input`` holds no tensors; ``ValueError`` unless there is one level for each number in
    ``channels``, with that many channels, and as many images in each.
    """
    levels = _as_list(input)
    if len(levels) != len(channels):
        raise ValueError(f"input must have {len(channels)} levels, with {channels} channels, got {len(levels)}")
    for i, level in enumerate(levels):
        check_input(level, 4, channels[i], True, f"level {i} of input")
        if is_tensor(level) and level.shape[0] != levels[0].shape[0]:
            raise ValueError(
                f"level {i} of input must have as many images as level 0, {levels[0].shape[0]}, got shape "
                f"{list(level.shape)}"
            )
    return levels


def _as_list(input: Levels) -> list[Tensor]:
    if isinstance(input, list):
        return input[:]
    if not torch.jit.is_scripting():
        if isinstance(input, tuple):
            return list(input)
        if not isinstance(input, dict):
            raise TypeError(f"input must be a list, tuple or dict of tensors, got {type(input).__name__}")
    return list(input.values())


def level_names(input: Levels) -> list[str]:
    """The names of the levels; numbers if they have none."""
    if isinstance(input, list):
        return [str(i) for i in range(len(input))]
    if not torch.jit.is_scripting() and isinstance(input, tuple):
        return [str(i) for i in range(len(input))]
    return list(input.keys())


def with_names(input: Levels, names: list[str], outputs: list[Tensor]) -> Levels:
    """``outputs`` as an ``OrderedDict`` with ``names`` if ``input`` is a dict, otherwise as a list."""
    if isinstance(input, list):
        return outputs
    if not torch.jit.is_scripting():
        return OrderedDict(zip(names, outputs, strict=True)) if isinstance(input, dict) else outputs
    named: dict[str, Tensor] = {}
    for i, name in enumerate(names):
        named[name] = outputs[i]
    return named


def resize(image: Tensor, like: Tensor, mode: str = "nearest") -> Tensor:
    """``image`` interpolated to the height and width of ``like``."""
    # A graph for all sizes has no branch on them.
    if not torch.jit.is_scripting() and not torch.compiler.is_compiling():  # noqa: SIM102  # as in attention.py
        if is_tensor(image) and image.shape[2:] == like.shape[2:]:
            return image
    return F.interpolate(image, size=like.shape[-2:], mode=mode)
