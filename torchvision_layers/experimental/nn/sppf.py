"""Fast spatial pyramid pooling."""

from functools import partial

import torch
from torch import Tensor, nn

from ..._utils.checks import check_input, check_int, check_odd
from ..._utils.construct import LayerArgument
from ...layers.conv import ConvNormAct

__all__ = ["SPPF"]


class SPPF(nn.Module):
    r"""Maxima over windows of several sizes, between two 1×1 convolutions: :math:`y = g([z, m(z), m(m(z)), \ldots])`
    with :math:`z = f(x)`.

    The form of `spatial pyramid pooling <https://arxiv.org/abs/1406.4729>`_ in YOLOv5: the maximum :math:`m` over a
    window of 5×5, applied two and three times, is the maximum over windows of 9×9 and 13×13, at a fraction of the time.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the window, odd. Default: ``5``.
        pools: how often the maximum is applied. Default: ``3``.
        hidden_channels: channels of :math:`z`. Default: ``None``, half of ``in_channels``.
        norm_layer: called with the channels; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.SiLU``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. Errors: ``TypeError`` for an argument
    of the wrong type; ``ValueError`` for a number out of range, an instance with the wrong number of channels, or an
    input with another number of dimensions or channels.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H, W)`.

    Examples::

        >>> enn.SPPF(16, 32)(torch.rand(2, 16, 20, 20)).shape
        torch.Size([2, 32, 20, 20])
    """

    #: The output has the size of the input.
    reduction = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 5,
        *,
        pools: int = 3,
        hidden_channels: int | None = None,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.SiLU,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels)
        self.out_channels = check_int("out_channels", out_channels)
        kernel_size = check_odd("kernel_size", kernel_size)
        pools = check_int("pools", pools)
        hidden = max(1, in_channels // 2) if hidden_channels is None else check_int("hidden_channels", hidden_channels)
        conv = partial(
            ConvNormAct,
            kernel_size=1,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            device=device,
            dtype=dtype,
        )
        self.reduce = conv(in_channels, hidden)
        self.pools = nn.ModuleList([nn.MaxPool2d(kernel_size, 1, kernel_size // 2) for _ in range(pools)])
        self.project = conv((pools + 1) * hidden, out_channels)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels)
        maximum = self.reduce(input)
        outputs = [maximum]
        for pool in self.pools:
            maximum = pool(maximum)
            outputs.append(maximum)
        return self.project(torch.cat(outputs, 1))
