"""Corrects biases for the shift that rounding the weights adds to the mean of each channel.

Activations are mostly positive, so errors of the weights do not cancel: they shift whole channels. Convolutions and
linear layers are linear, so the mean input determines the mean shift (Nagel et al., 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction", section 4.2, with the mean measured instead of derived).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.row_blocks import row_blocks

__all__ = ["CORRECTING_IMAGES", "InputMean", "cancel_shift", "image_means", "rounding_error", "significant_mean"]

#: Images on which the biases are corrected for rounded activations, layer by layer.
CORRECTING_IMAGES = 8


def rounding_error(weight: Tensor, observer: Any) -> Tensor:
    """The error that rounding adds to a weight, with the scales of a symmetric observer of torch.ao or torchao.

    The observer must have one scale for each item of the first dimension.
    """
    observer(weight)
    scale = observer.calculate_qparams()[0].view(-1, *[1] * (weight.dim() - 1))  # zero points are zero
    error = torch.empty_like(weight)
    blocks = row_blocks(weight)
    scales = scale.split([len(rows) for rows in blocks])
    for result, rows, step in zip(row_blocks(error), blocks, scales, strict=True):
        # The same as torch.fake_quantize_per_channel_affine, in a third of the time.
        torch.mul(rows, 1 / step, out=result).round_().clamp_(observer.quant_min, observer.quant_max)
        result.mul_(step).sub_(rows)
    return error


class InputMean(nn.Module):
    """Measures the mean input of a layer at each position of its kernel, over images and output positions.

    Args:
        kernel_size: size of the kernel in each spatial dimension; none for a linear layer, with any number of
            dimensions in front of the features.
        stride: stride of the convolution in each of these dimensions.
        padding: zeros on both sides.
        dilation: distance between the elements of the kernel.
        groups: number of groups of channels.
    """

    def __init__(
        self,
        kernel_size: Sequence[int] = (),
        stride: Sequence[int] = (),
        padding: Sequence[int] = (),
        dilation: Sequence[int] = (),
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.groups = groups
        self._dims = list(zip(kernel_size, stride, padding, dilation, strict=True))
        self._total: Tensor | None = None
        self._images = 0

    def forward(self, input: Tensor) -> None:
        if not self._dims:
            input = input.reshape(-1, input.shape[-1])
        elif input.dim() == len(self._dims) + 1:  # one image without a batch
            input = input.unsqueeze(0)
        if not input.numel():
            return
        mean = input.detach().mean(0)
        for size, dim in zip(input.shape[2:], self._dims, strict=True):
            # Moves the kernel's dimension to the end, so the next one to contract is again the first after channels.
            mean = torch.tensordot(mean, _reads(size, *dim).to(mean), dims=([1], [0]))
        total = mean * len(input)
        self._total = total if self._total is None else self._total + total
        self._images += len(input)

    def rounded(self, weight: Tensor, observer: Any) -> tuple[Tensor, Tensor]:
        """The rounded weight of the layer, and the step of each output channel.

        Args:
            weight: the weight in float.
            observer: a symmetric observer of torch.ao or torchao. Its method ``limits``, if there is one, returns the
                bounds for a weight that is rounded to anything but the nearest step.
        """
        error = rounding_error(weight, observer)
        return weight + error, observer.calculate_qparams()[0].expand(len(weight))

    def shift(self, error: Tensor) -> Tensor | None:
        """How much this error of the weights shifts the mean of each output channel; ``None`` if there was no input."""
        if self._total is None:
            return None
        mean, groups = self._total / self._images, self.groups
        return (error.reshape(groups, len(error) // groups, -1) * mean.reshape(groups, 1, -1)).sum(2).flatten()


def _reads(size: int, kernel_size: int, stride: int, padding: int, dilation: int) -> Tensor:
    """For each input and each element of the kernel, the share of the outputs that multiplies both."""
    outputs = (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1
    positions = torch.arange(outputs)[:, None] * stride + torch.arange(kernel_size) * dilation - padding
    elements = torch.arange(kernel_size).expand_as(positions)
    is_inside = (positions >= 0) & (positions < size)
    reads = torch.zeros(size, kernel_size)
    reads[positions[is_inside], elements[is_inside]] = 1 / outputs
    return reads


def image_means(output: Tensor, axis: int) -> Tensor:
    """The mean of each channel in each image; the positions of an image are too much alike to count separately.

    ``axis`` is the dimension of the channels, the images are the first.
    """
    values = output.movedim(axis, -1)
    return values.clone() if values.dim() < 3 else values.mean(tuple(range(1, values.dim() - 1)))


def cancel_shift(output: Tensor, expected: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The summand of a bias with which the means of the channels become ``expected``, and the output with it.

    ``axis`` is a negative number, and ``expected`` a result of :func:`image_means` for the same images.
    """
    shift = significant_mean(expected - image_means(output, axis))
    return shift, output + shift.reshape([-1, *[1] * (-1 - axis)])


def significant_mean(values: Tensor) -> Tensor:
    """The mean over all dimensions but the last, less the share of its size that chance explains.

    The mean of a few values has an error, whose size follows from the variance of the values, here of all channels
    together. Zero if there is only one value.
    """
    rows = values.reshape(-1, values.shape[-1])
    mean = rows.mean(0)
    if len(rows) < 2 or not bool(mean.any()):
        return torch.zeros_like(mean)
    if not 1e-12 < float(mean.abs().max()) < 1e12:  # their squares need float64
        rows, mean = rows.double(), mean.double()
    # The same as rows.var(0).mean(), in a small part of the time.
    variance = (rows.square().mean() - mean.square().mean()).clamp(min=0) * len(rows) / (len(rows) - 1)
    return (mean * (1 - variance / len(rows) / mean.square().mean()).clamp(min=0)).to(values)
