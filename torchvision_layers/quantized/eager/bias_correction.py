"""Corrects biases for the shift that rounding the weights adds to the mean of each channel."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["correct_biases"]


@contextmanager
def correct_biases(model: nn.Module) -> Iterator[None]:
    """Measures the shift on the batches that a prepared model runs on within the context, then corrects its biases.

    Activations are mostly positive, so errors of the weights do not cancel: they shift whole channels. Convolutions
    are linear, so the mean input determines the mean shift (Nagel et al., 2019, "Data-Free Quantization Through Weight
    Equalization and Bias Correction", section 4.2, with the mean measured instead of derived).
    """
    shifts: dict[Any, _Shift] = {
        module: _Shift(module)  # a shared module has one bias, corrected by the mean over its calls
        for module in model.modules()
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) and getattr(module, "qconfig", None) is not None
    }
    handles = [module.register_forward_pre_hook(shift.update, with_kwargs=True) for module, shift in shifts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for module, shift in shifts.items():
        if shift.images:
            mean = shift.total / shift.images
            module.bias = nn.Parameter(-mean if module.bias is None else module.bias.detach() - mean)


class _Shift:
    """How much rounded weights shift the output channels of a convolution or linear layer, summed over images."""

    def __init__(self, module: Any) -> None:
        weight = module.weight.detach()
        observer = module.qconfig.weight()
        observer(weight)
        scale = observer.calculate_qparams()[0].view(-1, *[1] * (weight.dim() - 1))  # zero points are zero
        # The same as torch.fake_quantize_per_channel_affine, in a third of the time.
        steps = weight.mul(1 / scale).round_().clamp_(observer.quant_min, observer.quant_max)
        self.error = steps.mul_(scale).sub_(weight)
        self.total = weight.new_zeros(len(weight))
        self.images = 0

    def update(self, module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        input = args[0] if args else kwargs["input"]
        if isinstance(module, nn.Linear):
            shift = nn.functional.linear(input.flatten(0, -2).mean(0), self.error)
        else:
            shift = module._conv_forward(input.mean(0, keepdim=True), self.error, None).flatten(2).mean((0, 2))
        self.total += shift * len(input)
        self.images += len(input)
