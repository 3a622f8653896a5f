"""The smallest quantization step, and training with steps as small, for the observers of both engines."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["SMALLEST_STEP", "SMALLEST_WEIGHT_STEP", "FineSteps", "fitted_weights", "with_one_step"]

# Kernels multiply a step of activations by one of weights: 2 ** -126 is the smallest normal number of float32. The
# observers of torch and torchao end at 2 ** -23 and 2 ** -12, and round everything below to zero.
SMALLEST_STEP, SMALLEST_WEIGHT_STEP = 2.0**-90, 2.0**-36
#: A little more than the smallest step of torch's fused kernel for training.
_SMALLEST_FUSED_STEP = 6.2e-5


class FineSteps:
    """Mixed into a ``FusedMovingAvgObsFakeQuantize`` of torch.ao or torchao, for activations with a small range.

    The fused kernel takes at least 6.1e-5 as the step, which the conversion does not.
    """

    scale: Tensor
    fake_quant_enabled: Tensor
    activation_post_process: Any

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(input)  # type: ignore[misc]
        if float(self.scale) > _SMALLEST_FUSED_STEP or not bool(self.fake_quant_enabled):
            return output
        observer = self.activation_post_process
        scale, zero_point = observer.calculate_qparams()
        return torch.fake_quantize_per_tensor_affine(input, scale, zero_point, observer.quant_min, observer.quant_max)


class _OneStep:
    """Mixed into an observer of weights per channel: all channels have the step of the one with the largest."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        steps, zero_points = super().calculate_qparams()  # type: ignore[misc]
        return steps.amax().expand_as(steps).clone(), zero_points


@cache
def with_one_step(observer: type[Any]) -> type[Any]:
    """A class like ``observer``, whose channels have one step. Kernels need a step for each channel all the same."""
    return type(f"OneStep{observer.__name__.lstrip('_')}", (_OneStep, observer), {"__module__": observer.__module__})


def fitted_weights(values: Tensor, steps: Tensor, biases: Tensor, input_step: float) -> tuple[Tensor, Tensor] | None:
    """The integers and the steps of weights, with larger steps in each channel whose bias would not fit into 32 bits.

    Kernels hold a bias in steps of the input times those of the weights. If weights or inputs are almost zero, larger
    steps cost them digits that the bias hides. ``None`` if all biases fit.

    Args:
        values: the integers, with channels in the first dimension.
        steps: the step of each channel.
        biases: the bias of each channel.
        input_step: the step of the input.
    """
    larger = steps.maximum((biases.detach().to(steps).abs() / (input_step * 2.0**30)).to(steps))
    if torch.equal(larger, steps):
        return None
    return (values * (steps / larger).reshape(-1, *[1] * (values.dim() - 1))).round().to(torch.int8), larger
