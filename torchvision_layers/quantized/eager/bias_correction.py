"""Bias correction of prepared modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..bias_correction import InputMean, rounding_error

__all__ = ["correct_biases"]


@contextmanager
def correct_biases(model: nn.Module) -> Iterator[None]:
    """Measures the inputs that a prepared model runs on within the context, then corrects its biases."""
    means: dict[Any, InputMean] = {
        module: _input_mean(module)  # a shared module has one bias, corrected by the mean over its calls
        for module in model.modules()
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) and getattr(module, "qconfig", None) is not None
    }
    handles = [
        module.register_forward_pre_hook(partial(_update, mean), with_kwargs=True) for module, mean in means.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for module, mean in means.items():
        error = rounding_error(module.weight.detach(), module.qconfig.weight())
        shift = mean.shift(error, getattr(module, "groups", 1))
        if shift is not None:
            module.bias = nn.Parameter(-shift if module.bias is None else module.bias.detach() - shift)


def _input_mean(module: Any) -> InputMean:
    if isinstance(module, nn.Linear):
        return InputMean()
    return InputMean(module.kernel_size, module.stride, module.padding, module.dilation)


def _update(mean: InputMean, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    mean(args[0] if args else kwargs["input"])
