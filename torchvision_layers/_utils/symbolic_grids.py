"""Grids of coordinates during an export."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["SymbolicGrids"]


class SymbolicGrids(TorchFunctionMode):
    """Computes ``torch.linspace`` and ``affine_grid`` of variable lengths by operators that keep them variable.

    Their own operators take the lengths for constants, so the graph would be for one image size only.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace and kwargs.keys() <= {"start", "end", "steps", "dtype", "device"}:
            names = [kwargs[name] for name in ("start", "end", "steps") if name in kwargs]
            start, end, steps = [*args, *names][:3]
            if isinstance(steps, torch.SymInt) and all(isinstance(limit, (int, float)) for limit in (start, end)):
                index = _index(steps, kwargs.get("dtype") or torch.get_default_dtype(), kwargs.get("device"))
                return start + (end - start) * (index / index[-1:].clamp(min=1))
        if func is functional.affine_grid:
            theta, size = args
            if len(size) == 4 and any(isinstance(length, torch.SymInt) for length in size[2:]):
                return _affine_grid(theta, size[2], size[3], bool(kwargs["align_corners"]))
        return func(*args, **kwargs)


def _affine_grid(theta: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    x, y = (_coordinates(length, theta, align_corners) for length in (width, height))
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width), theta.new_ones(height, width)], 2)
    return torch.matmul(grid.flatten(0, 1), theta.transpose(1, 2)).unflatten(1, (height, width))


def _coordinates(length: int, like: Tensor, align_corners: bool) -> Tensor:
    """Those of the pixels in an image that extends from -1 to 1; the outer pixels are at its edge or within."""
    index = _index(length, like.dtype, like.device)
    last = index[-1:]
    return (2 * index - last) / (last.clamp(min=1) if align_corners else last + 1)


def _index(length: Any, dtype: torch.dtype, device: Any) -> Tensor:
    return torch.arange(length, dtype=dtype, device=device)
