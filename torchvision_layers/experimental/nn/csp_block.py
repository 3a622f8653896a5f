"""Cross-stage partial block."""

from functools import partial

import torch
from torch import Tensor, nn

from ..._utils.checks import check_bool, check_input, check_int, check_same_shape
from ..._utils.construct import Builder, LayerArgument
from ...layers.conv import ConvNormAct
from ...layers.residual import BasicBlock

__all__ = ["CSPBlock"]


class CSPBlock(nn.Module):
    r"""A chain of blocks on one half of the channels, joined with the other half: :math:`y = g([b_n, s])`, or
    :math:`y = g([s, b_0, \ldots, b_n])`.

    From `CSPNet <https://arxiv.org/abs/1911.11929>`_ (figure 2): a 1×1 convolution of the input gives two halves, the
    skip :math:`s` and the start :math:`b_0` of the chain :math:`b_i = f_i(b_{i-1})`; :math:`g` is a 1×1 convolution.
    The first form is C3 of YOLOv5. The second, with ``aggregates=True``, is C2f of YOLOv8, and with blocks of two
    convolutions each the ELAN of `YOLOv7 <https://arxiv.org/abs/2207.02696>`_ (figure 2c).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        block: called with the channels of its input and of its output, which are the same; must keep height and width.
            Default: :class:`~torchvision_layers.nn.BasicBlock`.
        depth: number of blocks :math:`n`. Default: ``1``.
        aggregates: whether the output of every block is concatenated, not only that of the last. Default: ``False``.
        hidden_channels: channels of each half and of the blocks. Default: ``None``, half of ``out_channels``.
        norm_layer: of the 1×1 convolutions, called with their channels; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: of the 1×1 convolutions, called with ``inplace=True`` if it takes it; ``None`` for none.
            Default: ``nn.SiLU``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. Errors: ``TypeError`` for an argument
    of the wrong type; ``ValueError`` for a number out of range, an instance with the wrong number of channels, an input
    with another number of dimensions or channels, or a block that changes the shape.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H, W)`.

    Examples::

        >>> enn.CSPBlock(16, 32, depth=2)(torch.rand(2, 16, 20, 20)).shape
        torch.Size([2, 32, 20, 20])
        >>> elan = enn.CSPBlock(16, 32, lambda c, o: nn.Sequential(tnn.ConvNormAct(c, o), tnn.ConvNormAct(o, o)),
        ...                     depth=2, aggregates=True)
    """

    #: The output has the size of the input.
    reduction = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block: LayerArgument = BasicBlock,
        *,
        depth: int = 1,
        aggregates: bool = False,
        hidden_channels: int | None = None,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.SiLU,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels)
        self.out_channels = check_int("out_channels", out_channels)
        depth = check_int("depth", depth)
        self.aggregates = check_bool("aggregates", aggregates)
        hidden = max(1, out_channels // 2) if hidden_channels is None else check_int("hidden_channels", hidden_channels)
        build = Builder(device, dtype)
        blocks = [build.module("block", block, hidden, hidden) for _ in range(depth)]
        width = getattr(blocks[0], "out_channels", hidden)
        if width != hidden:
            raise ValueError(f"block has out_channels={width}, expected {hidden}, as many as its input")
        conv = partial(
            ConvNormAct,
            kernel_size=1,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            device=device,
            dtype=dtype,
        )
        self.split = conv(in_channels, 2 * hidden)
        self.blocks = nn.ModuleList(blocks)
        self.project = conv((2 + depth if aggregates else 2) * hidden, out_channels)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels)
        skip, output = self.split(input).chunk(2, dim=1)
        outputs = [skip, output]
        for i, block in enumerate(self.blocks):
            output = block(output)
            check_same_shape(f"the output of blocks[{i}]", output, skip, "its input")
            outputs.append(output)
        return self.project(torch.cat(outputs if self.aggregates else [output, skip], 1))

    def extra_repr(self) -> str:
        return f"aggregates={self.aggregates}"
