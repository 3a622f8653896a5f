"""Values that are NaN or infinite, which no range holds.

Calibration ends with the module that they begin in. Int8 models refuse inputs with NaN, and kernels that would replace
NaN by a number refuse activations with it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .._utils.empty_batches import runs_without_images
from .._utils.inputs import Inputs
from .._utils.modules import copy_module
from .._utils.structure import flatten

__all__ = [
    "FiniteValues",
    "all_finite",
    "calibrating",
    "check_activation",
    "check_finite",
    "check_not_nan",
    "describe_origin",
    "may_give_nan",
]

#: Operators that give NaN, or infinity, for some finite inputs.
_PARTIAL = {
    *("div", "divide", "float_power", "fmod", "logit", "pow", "reciprocal", "remainder", "rsqrt", "sqrt"),
    *("exp", "expm1", "log", "log10", "log1p", "log2", "logaddexp", "true_divide", "truediv", "xlogy"),
    *("acos", "acosh", "arccos", "arccosh", "arcsin", "arctanh", "asin", "atanh", "std", "std_mean", "var", "var_mean"),
    *("masked_fill", "scaled_dot_product_attention", "where"),
}


class NotFiniteError(Exception):
    """An observer got NaN or infinity."""


class FiniteValues:
    """Mixed into an observer of torch.ao or torchao.

    The observers ignore infinity, which int8 would replace by the end of the range, and fail for NaN.
    """

    def forward(self, x_orig: Tensor) -> Tensor:
        if x_orig.numel() and not all(map(bool, map(torch.isfinite, x_orig.aminmax()))):
            raise NotFiniteError
        output: Tensor = super().forward(x_orig)  # type: ignore[misc]
        return output


def check_not_nan(inputs: Inputs) -> None:
    """Errors: ``ValueError`` for inputs of an int8 or prepared model with NaN, except in compilers and tracers."""
    if _knows_no_values():
        return
    for tensor in inputs.tensors():
        if _has_nan(tensor):
            raise ValueError(
                f"inputs must not contain NaN, which int8 would replace by a number, got NaN in a tensor of shape "
                f"{list(tensor.shape)}"
            )


def may_give_nan(operator: str) -> bool:
    """Whether an operator of this name, in place or not, gives NaN or infinity for some finite inputs."""
    return operator.rstrip("_") in _PARTIAL


def check_activation(tensor: Tensor) -> None:
    """Errors: ``ValueError`` for NaN in an activation that is to be rounded, except in compilers and tracers."""
    if not (_knows_no_values() or runs_without_images()) and _has_nan(tensor):
        raise ValueError(
            "activations must not become NaN, which int8 would replace by a number, got NaN in a tensor of shape "
            f"{list(tensor.shape)}: clamp divisors, and what roots and logarithms take"
        )


def check_finite(tensor: Tensor) -> None:
    """Errors: ``ValueError`` for NaN or infinity where a kernel would make numbers of them, except in compilers."""
    if not (runs_without_images() or all_finite([tensor])):
        raise ValueError(
            "activations must be finite, because kernels with an activation replace NaN by a number, got NaN or "
            f"infinity in a tensor of shape {list(tensor.shape)}"
        )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values are finite; true in compilers and tracers."""
    return _knows_no_values() or not any(map(_has_other_values, tensors))


def _knows_no_values() -> bool:
    """Whether a compiler or tracer runs."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _has_nan(tensor: Tensor) -> bool:
    with torch._C.DisableTorchFunction():  # a mode may forbid to read values, which the outputs must not depend on
        # The sum takes a tenth of the time of isnan(). Infinite values of both signs make it NaN, too.
        return bool(tensor.is_floating_point() and tensor.detach().sum().isnan() and tensor.isnan().any())


def _has_other_values(tensor: Tensor) -> bool:
    """Whether a value is not finite."""
    with torch._C.DisableTorchFunction():
        # The sum of large numbers may be infinite.
        is_float = tensor.is_floating_point()
        return is_float and not tensor.detach().sum().isfinite() and not bool(tensor.isfinite().all())


@contextmanager
def calibrating(model: nn.Module, batch: Inputs, index: int) -> Iterator[None]:
    """Raises ``ValueError`` if an observer gets NaN or infinity within the context.

    Args:
        model: the float model, to find out where they begin.
        batch: the batch that the context observes.
        index: the number of that batch.
    """
    try:
        yield
    except NotFiniteError:
        raise ValueError(
            f"activations must be finite to be calibrated, batch {index} gives NaN or infinity"
            f"{describe_origin(model, batch)}: clamp them, or use finite numbers as masks"
        ) from None


def describe_origin(model: nn.Module, inputs: Inputs) -> str:
    """The place of the first NaN or infinity, to be added to an error; empty if no module sees any."""
    model = copy_module(model).eval()
    paths = {module: path for path, module in model.named_modules()}
    running: list[nn.Module] = []
    origins: list[nn.Module] = []

    def enter(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if running and not _are_finite((args, kwargs)):
            origins.append(running[-1])
        running.append(module)

    def leave(module: nn.Module, args: object, output: object) -> None:
        running.pop()
        if not _are_finite(output):
            origins.append(module)

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in paths]
    handles += [module.register_forward_hook(leave) for module in paths]
    try:
        with torch.no_grad():
            inputs.map(Tensor.clone).run(model)
    finally:
        for handle in handles:
            handle.remove()
    if not origins:
        return ""
    return f", first in {paths[origins[0]] or 'the forward of model'} ({type(origins[0]).__name__})"


def _are_finite(value: object) -> bool:
    tensors = [tensor for tensor in flatten(value)[0] if tensor.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
