"""Keeps the biases of int8 layers on qnnpack within 32 bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

from ...steps import fitted_weights

__all__ = ["fit_biases"]


@contextmanager
def fit_biases(model: nn.Module) -> Iterator[None]:
    """Gives weights larger steps, in place, if a bias does not fit the input that the layer gets within the context.

    Convolutions of volumes are left alone: qnnpack does not give their weights back.
    """
    layers = [m for m in model.modules() if isinstance(m, (nnq.Conv1d, nnq.Conv2d, nnq.Linear))]
    handles = [layer.register_forward_pre_hook(_fit_bias, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fit_bias(layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    (input,) = (*args, *kwargs.values())
    weight, bias = layer._weight_bias()
    if bias is None or weight.qscheme() != torch.per_channel_affine:
        return
    fitted = fitted_weights(weight.int_repr(), weight.q_per_channel_scales(), bias, input.q_scale())
    if fitted is not None:
        zero_points, axis = weight.q_per_channel_zero_points(), weight.q_per_channel_axis()
        layer.set_weight_bias(torch._make_per_channel_quantized_tensor(*fitted, zero_points, axis), bias)
