"""Argument checks: each error names the argument, the rule and the value."""

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
import torch.fx
from torch import Tensor

__all__ = [
    "check_bool",
    "check_dtype",
    "check_eps",
    "check_flat",
    "check_floating",
    "check_groups",
    "check_input",
    "check_int",
    "check_number",
    "check_odd",
    "check_probability",
    "check_same_shape",
    "check_sizes",
    "check_width",
    "is_tensor",
]


def check_int(argument: str, value: object, minimum: int = 1) -> int:
    """Returns ``value``, an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{argument} must be at least {minimum}, got {value}")
    return int(value)


def check_odd(argument: str, value: object) -> int:
    """Returns ``value``, an odd positive integer."""
    number = check_int(argument, value)
    if number % 2 == 0:
        raise ValueError(f"{argument} must be odd, got {value}")
    return number


def check_sizes(argument: str, value: object, dims: int, minimum: int = 1) -> tuple[int, ...]:
    """Returns ``value``, one integer or ``dims`` of them, as a tuple of ``dims`` integers."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != dims:
            raise ValueError(f"{argument} must be one int or {dims} of them, got {value!r}")
        return tuple(check_int(argument, v, minimum) for v in value)
    return (check_int(argument, value, minimum),) * dims


def check_groups(groups: object, **widths: int) -> int:
    """Returns ``groups``, an integer of at least 1 that divides the widths, which are given by their names."""
    number = check_int("groups", groups)
    for name, channels in widths.items():
        if channels % number != 0:
            raise ValueError(f"{name} must be divisible by groups, got {channels} and {groups}")
    return number


def check_probability(argument: str, value: object) -> float:
    """Returns ``value``, a number in [0, 1]; NaN is refused."""
    probability = _check_real(argument, value)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"{argument} must be in [0, 1], got {value}")
    return probability


def check_number(argument: str, value: object) -> float:
    """Returns ``value``, a number; NaN and infinity are refused."""
    number = _check_real(argument, value)
    if not math.isfinite(number):
        raise ValueError(f"{argument} must be finite, got {value}")
    return number


def check_eps(eps: object) -> float:
    """Returns ``eps``, a finite number that is not negative."""
    number = _check_real("eps", eps)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"eps must be finite and not negative, got {eps}")
    return number


def _check_real(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    return float(value)


def check_bool(argument: str, value: object) -> bool:
    """Returns ``value``, which is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    return value


def is_tensor(input: Tensor) -> bool:
    """Whether there is a tensor to look at; symbolic and script tracing show none, and record no check."""
    if not torch.jit.is_scripting():
        if isinstance(input, torch.fx.Proxy) or torch.jit.is_tracing():
            return False
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor, got {type(input).__name__}")
    return True


def check_input(input: Tensor, dims: int, channels: int, needs_pixels: bool = False) -> None:
    """Raises unless ``input`` has ``dims`` dimensions, the second of size ``channels`` (and no later one of size 0)."""
    if not is_tensor(input):
        return
    if input.dim() != dims:
        raise ValueError(f"input must have {dims} dimensions, got {input.dim()}: shape {list(input.shape)}")
    if input.shape[1] != channels:
        raise ValueError(f"input must have {channels} channels, got {input.shape[1]}: shape {list(input.shape)}")
    if needs_pixels:
        for size in input.shape[2:]:
            if size == 0:
                raise ValueError(f"input must have at least one pixel, got shape {list(input.shape)}")


def check_width(input: Tensor, dim: int, channels: int) -> None:
    """Raises unless dimension ``dim`` of ``input`` has size ``channels``."""
    if not is_tensor(input):
        return
    if input.dim() < (dim + 1 if dim >= 0 else -dim) or input.shape[dim] != channels:
        raise ValueError(f"input must have size {channels} in dimension {dim}, got shape {list(input.shape)}")


def check_flat(input: Tensor) -> None:
    """Raises unless ``input`` has two dimensions: of three, nn.BatchNorm1d normalizes the second, not the features."""
    if is_tensor(input) and input.dim() != 2:
        raise ValueError(f"norm_layer=nn.BatchNorm1d takes inputs of 2 dimensions, got {input.dim()}")


def check_floating(input: Tensor) -> None:
    """Raises unless ``input`` is of a floating-point type, or quantized."""
    if is_tensor(input) and not input.is_floating_point() and not input.is_quantized:
        raise TypeError(f"input must be of a floating-point type, got {input.dtype}")


def check_dtype(input: Tensor, parameter: Tensor | None) -> None:
    """Raises unless ``input`` has the type of ``parameter``; half precision may meet float32, as in torch's own norms.

    For layers whose arithmetic would promote other types without a word. Convolutions and projections refuse them.
    """
    if torch.jit.is_scripting():  # where autocast cannot be asked
        check_floating(input)
        return
    if not is_tensor(input):
        return
    if parameter is None:
        check_floating(input)
    elif input.dtype != parameter.dtype and not _may_meet(input, parameter):
        raise TypeError(f"input must be {parameter.dtype} as the layer is, got {input.dtype}")


def _may_meet(input: Tensor, parameter: Tensor) -> bool:
    """Whether two types that differ are those of mixed precision; autocast also gives float32 to a half layer."""
    mixed = (torch.float16, torch.bfloat16, torch.float32)
    if input.dtype not in mixed or parameter.dtype not in mixed:
        return False
    device = input.device.type
    return parameter.dtype == torch.float32 or (
        torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    )


def check_same_shape(argument: str, given: Tensor, wanted: Tensor, of: str = "branch") -> None:
    """Raises unless the two sides of a residual addition have one shape: nothing is broadcast."""
    if is_tensor(given) and given.shape != wanted.shape:
        raise ValueError(f"{argument} must give the shape of the {of} {list(wanted.shape)}, got {list(given.shape)}")
