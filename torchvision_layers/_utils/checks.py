"""Argument checks. Every error names the argument, the rule and the value."""

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path

import torch
import torch.fx
from torch import Tensor

from .input_remedies import remedy

__all__ = [
    "check_bool",
    "check_dtype",
    "check_eps",
    "check_float32",
    "check_floating",
    "check_groups",
    "check_input",
    "check_int",
    "check_matrix",
    "check_number",
    "check_odd",
    "check_path",
    "check_probability",
    "check_same_shape",
    "check_shape",
    "check_size",
    "check_sizes",
    "check_threads",
    "did_you_mean",
    "is_tensor",
]

_MOST_THREADS = 1024


def check_int(argument: str, value: object, minimum: int = 1) -> int:
    """Returns ``value``, an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{argument} must be at least {minimum}, got {value}")
    return int(value)


def check_threads(value: object) -> int:
    """Returns ``value``, a number of threads: at least one and, because each takes memory, at most 1024."""
    number = check_int("threads", value)
    if number > _MOST_THREADS:
        raise ValueError(f"threads must be at most {_MOST_THREADS}, got {value}")
    return number


def check_odd(argument: str, value: object) -> int:
    """Returns ``value``, an odd positive integer."""
    number = check_int(argument, value)
    if number % 2 == 0:
        raise ValueError(f"{argument} must be odd, got {value}")
    return number


def check_sizes(argument: str, value: object, dims: int, minimum: int = 1) -> tuple[int, ...]:
    """Returns ``value``, an integer or a sequence of ``dims`` integers, as a tuple of ``dims`` integers."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != dims:
            raise ValueError(f"{argument} must be an int or a tuple of length {dims}, got {value!r}")
        return tuple(check_int(argument, size, minimum) for size in value)
    return (check_int(argument, value, minimum),) * dims


def check_groups(groups: object, **channels_by_name: int) -> int:
    """Returns ``groups``, a positive integer that divides each of the numbers of channels."""
    number = check_int("groups", groups)
    for name, channels in channels_by_name.items():
        if channels % number != 0:
            raise ValueError(f"{name} must be divisible by groups, got {channels} and {groups}")
    return number


def check_probability(argument: str, value: object) -> float:
    """Returns ``value``, a number in [0, 1]; NaN raises an error."""
    probability = _check_real(argument, value)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"{argument} must be in [0, 1], got {value}")
    return probability


def check_number(argument: str, value: object) -> float:
    """Returns ``value``, a finite number."""
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


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """The choice that is closest to ``value``, to be added to an error; empty if none is close."""
    close = difflib.get_close_matches(value.lower(), choices, n=1) if isinstance(value, str) else []
    return f": did you mean {close[0]!r}?" if close else ""


def check_path(argument: str, value: object) -> Path:
    """Returns ``value``, the path of a file, as a ``Path``."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument} must be a str or a Path, got {type(value).__name__}")
    return Path(value)


def check_float32(argument: str, value: object) -> Tensor:
    """Returns ``value``, a float32 tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a float32 tensor, got {type(value).__name__}{remedy(value)}")
    if value.dtype != torch.float32:
        raise TypeError(f"{argument} must be a float32 tensor, got {value.dtype}{remedy(value)}")
    return value


def check_shape(argument: str, tensor: Tensor, sizes: Sequence[int | None]) -> None:
    """Raises unless ``tensor`` has these sizes; ``None`` matches any size."""
    shape = list(tensor.shape)
    if len(shape) != len(sizes):
        raise ValueError(f"{argument} must have {len(sizes)} dimensions, got {len(shape)}: shape {shape}")
    for dim, size in enumerate(sizes):
        if size is not None and shape[dim] != size:
            raise ValueError(f"{argument} must have size {size} in dimension {dim}, got shape {shape}")


# The checks below run in the ``forward`` of layers, and so under torch.jit.script and in symbolic traces as well.


def is_tensor(input: Tensor, name: str = "input") -> bool:
    """Whether ``input`` can be checked: symbolic tracing and ``torch.jit.trace`` must not record the checks.

    Raises ``TypeError`` if it is not a tensor.
    """
    if not torch.jit.is_scripting():
        if isinstance(input, torch.fx.Proxy) or torch.jit.is_tracing():
            return False
        if not isinstance(input, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(input).__name__}")
    return True


def check_input(input: Tensor, dims: int, channels: int, needs_pixels: bool = False, name: str = "input") -> None:
    """Raises unless ``input`` has ``dims`` dimensions and ``channels`` channels in the second one.

    With ``needs_pixels`` no spatial dimension may be empty. ``name`` is that of the argument.
    """
    if not is_tensor(input, name):
        return
    if input.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions, got {input.dim()}: shape {list(input.shape)}")
    if input.shape[1] != channels:
        raise ValueError(f"{name} must have {channels} channels, got {input.shape[1]}: shape {list(input.shape)}")
    if needs_pixels:
        for size in input.shape[2:]:
            if size == 0:
                raise ValueError(f"{name} must have at least one pixel, got shape {list(input.shape)}")


def check_size(input: Tensor, dim: int, size: int) -> None:
    """Raises unless dimension ``dim`` of ``input`` has size ``size``."""
    if not is_tensor(input):
        return
    if input.dim() < (dim + 1 if dim >= 0 else -dim) or input.shape[dim] != size:
        raise ValueError(f"input must have size {size} in dimension {dim}, got shape {list(input.shape)}")


def check_matrix(input: Tensor) -> None:
    """Raises unless ``input`` has 2 dimensions: given 3, nn.BatchNorm1d would normalize the second, not the last."""
    if is_tensor(input) and input.dim() != 2:
        raise ValueError(f"input must have 2 dimensions with norm_layer=nn.BatchNorm1d, got {input.dim()}")


def check_floating(input: Tensor) -> None:
    """Raises unless ``input`` has a floating-point dtype or is quantized."""
    if is_tensor(input) and not input.is_floating_point() and not input.is_quantized:
        raise TypeError(f"input must have a floating-point dtype, got {input.dtype}")


def check_dtype(input: Tensor, parameter: Tensor | None) -> None:
    """Raises unless ``input`` has the dtype of ``parameter``; float16 and bfloat16 may be mixed with float32.

    For layers whose arithmetic would silently promote other dtypes. Torch's convolutions and linear layers raise an
    error themselves.
    """
    if torch.jit.is_scripting():  # TorchScript cannot read the autocast state
        check_floating(input)
        return
    if not is_tensor(input):
        return
    if parameter is None:
        check_floating(input)
    elif input.dtype != parameter.dtype and not _is_mixed_precision(input, parameter):
        raise TypeError(f"input must have the dtype of the layer, {parameter.dtype}, got {input.dtype}")


def _is_mixed_precision(input: Tensor, parameter: Tensor) -> bool:
    """Whether torch's own norms accept this pair of dtypes; under autocast, float32 may also enter a half layer."""
    mixed = (torch.float16, torch.bfloat16, torch.float32)
    if input.dtype not in mixed or parameter.dtype not in mixed:
        return False
    device = input.device.type
    return parameter.dtype == torch.float32 or (
        torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    )


def check_same_shape(name: str, tensor: Tensor, other: Tensor, other_name: str) -> None:
    """Raises unless the operands of a residual addition have the same shape, so that nothing is broadcast."""
    if is_tensor(tensor) and tensor.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name} {list(other.shape)}, got {list(tensor.shape)}")
