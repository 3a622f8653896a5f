"""Layers without parameters that compute an activation of torch, or nothing in eval mode, found by running them."""

import copy
import inspect
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import has_hooks

__all__ = ["plain_activation"]

_ACTIVATIONS: tuple[tuple[type[nn.Module], dict[str, Any]], ...] = (
    (nn.ReLU, {}),
    (nn.ReLU6, {}),
    (nn.SiLU, {}),
    (nn.Hardswish, {}),
    (nn.Sigmoid, {}),
    (nn.Hardsigmoid, {}),
    (nn.Tanh, {}),
    (nn.LeakyReLU, {}),
    (nn.ELU, {}),
    (nn.GELU, {}),
    (nn.GELU, {"approximate": "tanh"}),
    (nn.Mish, {}),
)
_SHAPES = ((3, 8, 5, 41), (60, 82))


def plain_activation(module: nn.Module, will_train: bool) -> nn.Module | None:
    """The activation of torch that ``module`` computes, or ``nn.Identity`` if it returns its input.

    ``None`` if there is none, in eval mode and, if it will train, in training mode as well.
    """
    tensors = (*module._parameters.values(), *module._buffers.values())
    if module._modules or tensors or "forward" in vars(module) or has_hooks(module):
        return None
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about the inputs, which are ours
        try:
            names = {_name_of(module, training) for training in {False, will_train}}
        except Exception:  # a user's forward may raise anything for an input that it does not expect
            return None
    return _build(*names.pop()) if len(names) == 1 else None


_Key = tuple[int, bool]


def _build(index: int, inplace: bool) -> nn.Module | None:
    if index < 0:
        return nn.Identity() if index == -1 else None
    cls, arguments = _ACTIVATIONS[index]
    if not inplace:
        return cls(**arguments)
    return cls(**arguments, inplace=True) if "inplace" in inspect.signature(cls).parameters else None


@torch.no_grad()
def _name_of(module: nn.Module, training: bool) -> _Key:
    """The index of the activation, -1 for the identity, -2 for neither; and whether it writes into its input."""
    copied = copy.deepcopy(module).train(training)
    before = dict(vars(copied))
    found: set[_Key] = set()
    for shape in _SHAPES:
        points = _points().view(shape)
        input = points.clone()
        output = copied(input)
        if output is input and torch.equal(input, points):
            found.add((-1, False))
            continue
        index = next((i for i, values in enumerate(_values()) if _are_close(output, values.view(shape))), -2)
        writes = not torch.equal(input, points)
        # An activation in place returns its input; a caller that writes into the result sees the difference.
        found.add((index if (output is input) == writes else -2, writes))
    has_changed = any(value is not before.get(name) for name, value in vars(copied).items())
    return found.pop() if len(found) == 1 and not has_changed else (-2, False)


@lru_cache
def _points() -> Tensor:
    far = torch.tensor([14.0, 20.0, 50.0, 100.0, 1e3, 1e5], dtype=torch.float64)
    points = torch.cat([torch.linspace(-12, 12, 4907, dtype=torch.float64), far, -far, torch.zeros(1)])
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))]


@lru_cache
def _values() -> list[Tensor]:
    return [cls(**arguments)(_points()) for cls, arguments in _ACTIVATIONS]


def _are_close(output: object, values: Tensor) -> bool:
    if not isinstance(output, Tensor) or output.shape != values.shape or output.dtype != values.dtype:
        return False
    return torch.allclose(output, values, rtol=1e-7, atol=1e-7)
