"""Pools and interpolation of int8 tensors, by torch's kernels, which need inputs of one of two orders in memory."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..report_row import Int8Support
from .support import int8_support

__all__ = ["INT8_POOLS", "interpolate", "use_int8_pools"]


def use_int8_pools(model: nn.Module) -> None:
    """Gives the pools and interpolations in ``model`` a class whose ``forward`` suits the kernels, in place."""
    for module in model.modules():
        if int8_support(module) is not Int8Support.PASS_THROUGH:
            continue
        strides = _strides_of_single_pixels(module)
        if strides is not None:
            module.__class__ = Subsampling
            module.strides = strides  # type: ignore[assignment]  # a plain attribute
        elif type(module) in INT8_POOLS:
            module.__class__ = INT8_POOLS[type(module)]


def _strides_of_single_pixels(module: Any) -> tuple[int, int] | None:
    """The strides of a pool that looks at one pixel; ``None`` for any other module."""
    if type(module) not in (nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d):
        return None
    if module.kernel_size not in (1, (1,), (1, 1), [1], [1, 1]):
        return None
    if type(module) in (nn.AvgPool1d, nn.MaxPool1d):
        return 1, _last(module.stride)
    return (module.stride, module.stride) if isinstance(module.stride, int) else tuple(module.stride)


def _last(value: Any) -> int:
    return int(value if isinstance(value, int) else value[-1])


class Subsampling(nn.Module):
    """A pool of single pixels, which qnnpack rejects."""

    float_class = nn.MaxPool2d
    strides: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:
        return input[..., :: self.strides[0], :: self.strides[1]]

    def extra_repr(self) -> str:
        return f"strides={self.strides}"


def _dense(images: Tensor) -> Tensor:
    """The same images in a memory format that is beyond doubt.

    If a dimension of size one has another stride than dense images have, torch's kernels read channels_last memory and
    write contiguous memory.
    """
    channels, height, width = images.size(1), images.size(2), images.size(3)
    if list(images.stride()) == [channels * height * width, 1, channels * width, channels]:
        return images
    return images.contiguous()


class MaxPool1d(nn.MaxPool1d):
    float_class = nn.MaxPool1d

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool1d(input.contiguous(), self.kernel_size, self.stride, self.padding, 1, self.ceil_mode)


class AvgPool1d(nn.AvgPool1d):
    float_class = nn.AvgPool1d

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(input.contiguous(), self.kernel_size, self.stride, self.padding, self.ceil_mode)


class AdaptiveAvgPool1d(nn.AdaptiveAvgPool1d):
    float_class = nn.AdaptiveAvgPool1d

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input.contiguous(), self.output_size)


class MaxPool2d(nn.MaxPool2d):
    float_class = nn.MaxPool2d

    def forward(self, input: Tensor) -> Tensor:
        images = _dense(input if input.dim() == 4 else input.unsqueeze(0))  # qnnpack needs batches
        output = F.max_pool2d(images, self.kernel_size, self.stride, self.padding, 1, self.ceil_mode)
        return output if input.dim() == 4 else output.squeeze(0)


class AvgPool2d(nn.AvgPool2d):
    float_class = nn.AvgPool2d

    def forward(self, input: Tensor) -> Tensor:
        images = _dense(input if input.dim() == 4 else input.unsqueeze(0))
        output = F.avg_pool2d(images, self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return output if input.dim() == 4 else output.squeeze(0)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    float_class = nn.AdaptiveAvgPool2d

    def forward(self, input: Tensor) -> Tensor:
        images = _dense(input if input.dim() == 4 else input.unsqueeze(0))
        output = F.adaptive_avg_pool2d(images, self.output_size)
        return output if input.dim() == 4 else output.squeeze(0)


class Upsample(nn.Upsample):
    float_class = nn.Upsample

    def forward(self, input: Tensor) -> Tensor:
        images = _dense(input) if input.dim() == 4 else input
        return F.interpolate(
            images, self.size, self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor
        )


def interpolate(input: Tensor, size: list[int], mode: str, align_corners: bool | None) -> Tensor:
    """The function of torch for a size that a ``forward`` computes."""
    return F.interpolate(_dense(input) if input.dim() == 4 else input, size, mode=mode, align_corners=align_corners)


#: The classes of float modules, with those that take their place.
INT8_POOLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.AdaptiveAvgPool1d: AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool2d,
    nn.AvgPool1d: AvgPool1d,
    nn.AvgPool2d: AvgPool2d,
    nn.MaxPool1d: MaxPool1d,
    nn.MaxPool2d: MaxPool2d,
    nn.Upsample: Upsample,
    nn.UpsamplingNearest2d: Upsample,
}
