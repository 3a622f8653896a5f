"""Rounding of the weights of prepared modules, and correction of the biases for it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..._utils.inputs import Inputs
from ..._utils.progress import track
from ..bias_correction import InputMean, cancel_shift, image_means
from ..gptq import InputMoments
from ..range_choice import rounding_activations
from .torch_ao.fixed_steps import set_rounded_weight
from .wrappers import Int8Child

__all__ = ["correct_biases", "correct_in_turn", "measure_inputs", "record_outputs"]


@contextmanager
def measure_inputs(model: nn.Module, rounding: str = "nearest") -> Iterator[dict[Any, InputMean]]:
    """Measures the inputs that the layers of a prepared model get within the context, by module.

    A shared module has one weight and one bias, for all of its calls. A layer whose bias a ``forward`` computes is left
    out, because the bias may be zero on purpose: Swin V2 normalizes keys, and those of its padding must stay zero.
    """
    cls = InputMoments if rounding == "gptq" else InputMean
    children = [child for child in model.modules() if isinstance(child, Int8Child)]
    with_computed_bias = {child.module for child in children if child.passed_bias is not None}
    means = {
        module: cls(*_geometry(module))
        for module in model.modules()
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
        and getattr(module, "qconfig", None) is not None
        and module not in with_computed_bias
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
    """Rounds the weights, by GPTQ if second moments of inputs were measured, and corrects the biases of all layers."""
    is_learned = any(isinstance(mean, InputMoments) for mean in means.values())
    for module, mean in track(means.items(), "rounding", "layer", shown=progress and is_learned):
        weight = module.weight.detach()
        rounded, steps = mean.rounded(weight, module.qconfig.weight())
        set_rounded_weight(module, rounded, steps)
        shift = mean.shift(rounded - weight)
        if shift is not None:
            _shift_bias(module, -shift)


@contextmanager
def record_outputs(layers: Iterable[Any]) -> Iterator[dict[Any, Tensor]]:
    """Records the outputs of layers within the context: by module, the means of the channels in each image.

    Layers that run more than once are left out.
    """
    means = dict[Any, Tensor]()
    ran = set[Any]()

    def record(module: Any, args: object, output: Tensor) -> None:
        if module in ran:
            means.pop(module, None)
        else:
            means[module] = image_means(output, _channel_axis(module))
        ran.add(module)

    handles = [module.register_forward_hook(record, prepend=True) for module in layers]  # before its observer
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()


def correct_in_turn(model: nn.Module, expected: dict[Any, Tensor], images: Inputs) -> None:
    """Corrects the bias of each layer of a prepared model before the next layer runs, in place.

    The model runs with activations rounded, so this cancels the shift of clipped activations too.

    Args:
        model: a prepared model after ``correct_biases``, which has rounded its weights.
        expected: what ``record_outputs`` recorded for the same images in float.
        images: the inputs of the model.
    """

    def correct(module: Any, args: object, output: Tensor) -> Tensor:
        shift, output = cancel_shift(output, expected[module], _channel_axis(module))
        _shift_bias(module, shift)
        return output

    handles = [module.register_forward_hook(correct, prepend=True) for module in expected]
    try:
        with rounding_activations(model):
            images.run(model)
    finally:
        for handle in handles:
            handle.remove()


def _shift_bias(module: Any, shift: Tensor) -> None:
    # A new parameter, because the old one may have other names.
    module.bias = nn.Parameter(shift if module.bias is None else module.bias.detach() + shift)


def _channel_axis(module: Any) -> int:
    """The dimension of the channels in the output of a layer, counted from the end."""
    return -1 if isinstance(module, nn.Linear) else 1 - module.weight.dim()


def _geometry(module: Any) -> tuple[Any, ...]:
    if isinstance(module, nn.Linear):
        return ()
    return module.kernel_size, module.stride, module.padding, module.dilation, module.groups


def _update(mean: InputMean, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    mean(args[0] if args else kwargs["input"])
