"""A convolution that checks its arguments: the base of layers that change its weight."""

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from .._utils.checks import check_bool, check_groups, check_int, check_sizes

__all__ = ["CheckedConv2d", "in_layout_of"]


class CheckedConv2d(nn.Conv2d):
    """``nn.Conv2d`` with an error for every bad argument; subclasses override ``forward``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int] | str,
        dilation: int | tuple[int, int],
        groups: int,
        bias: bool,
        padding_mode: str,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_int("in_channels", in_channels)
        check_int("out_channels", out_channels)
        sizes: dict[str, Any] = {
            "kernel_size": check_sizes("kernel_size", kernel_size, 2),
            "stride": check_sizes("stride", stride, 2),
            "padding": padding if isinstance(padding, str) else check_sizes("padding", padding, 2, minimum=0),
            "dilation": check_sizes("dilation", dilation, 2),
            "padding_mode": padding_mode,
        }
        check_groups(groups, in_channels=in_channels, out_channels=out_channels)
        check_bool("bias", bias)
        super().__init__(in_channels, out_channels, groups=groups, bias=bias, device=device, dtype=dtype, **sizes)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Convolves like ``nn.Conv2d`` with another weight, and keeps the memory layout in every padding mode."""
        if self.padding_mode == "zeros":
            return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, groups)
        padded = in_layout_of(F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), input)
        return F.conv2d(padded, weight, bias, self.stride, (0, 0), self.dilation, groups)

    def _plain_conv(self, weight: Tensor, bias: Tensor | None, groups: int) -> nn.Conv2d:
        """An ``nn.Conv2d`` of the same kernel size, stride, padding and dilation with the given weights."""
        sizes: dict[str, Any] = {
            name: getattr(self, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        channels, has_bias = weight.shape[1] * groups, bias is not None
        # The meta device draws no random numbers for parameters that are replaced below.
        conv = nn.Conv2d(channels, len(weight), groups=groups, bias=has_bias, device="meta", **sizes)
        conv.train(self.training)
        layout = torch.channels_last if self.weight.stride(1) == 1 else torch.contiguous_format
        conv.weight = nn.Parameter(weight.clone(memory_format=layout), requires_grad=False)
        conv.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
        return conv


@torch.fx.wrap  # stays one node in a traced graph, so that the choice between layouts survives
def in_layout_of(output: Tensor, input: Tensor) -> Tensor:
    """Returns ``output`` in the memory layout of ``input``, channels_last or contiguous, copied if necessary."""
    if input.stride(3) != 1 and input.stride(1) == 1:  # a contiguous image of one pixel has stride(1) == 1, too
        return output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap does not support memory_format
    return output.contiguous()
