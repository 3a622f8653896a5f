"""Rounding of the weights of prepared modules, and correction of the biases for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..._utils.progress import track
from ..bias_correction import InputMean, rounding_error
from ..gptq import InputMoments
from .torch_ao.fixed_steps import set_rounded_weight

__all__ = ["correct_biases", "measure_inputs"]


@contextmanager
def measure_inputs(model: nn.Module, rounding: str = "nearest") -> Iterator[dict[Any, InputMean]]:
    """Measures the inputs that the layers of a prepared model get within the context, by module.

    A shared module has one weight and one bias, for all of its calls.
    """
    cls = InputMoments if rounding == "gptq" else InputMean
    means = {
        module: cls(*_geometry(module))
        for module in model.modules()
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) and getattr(module, "qconfig", None) is not None
    }
    handles = [
        module.register_forward_pre_hook(partial(_update, mean), with_kwargs=True) for module, mean in means.items()
    ]
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()


def correct_biases(means: dict[Any, InputMean], progress: bool = False) -> None:
    """Rounds weights if second moments of their inputs were measured, and corrects the biases of all layers."""
    is_learned = any(isinstance(mean, InputMoments) for mean in means.values())
    for module, mean in track(means.items(), "rounding", "layer", shown=progress and is_learned):
        weight, observer = module.weight.detach(), module.qconfig.weight()
        if isinstance(mean, InputMoments):
            rounded, steps = mean.rounded(weight, observer)
            set_rounded_weight(module, rounded, steps)
            shift = mean.shift(rounded - weight)
        else:
            shift = mean.shift(rounding_error(weight, observer))
        if shift is not None:
            module.bias = nn.Parameter(-shift if module.bias is None else module.bias.detach() - shift)


def _geometry(module: Any) -> tuple[Any, ...]:
    if isinstance(module, nn.Linear):
        return ()
    return module.kernel_size, module.stride, module.padding, module.dilation, module.groups


def _update(mean: InputMean, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    mean(args[0] if args else kwargs["input"])
