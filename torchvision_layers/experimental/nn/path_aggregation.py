"""Path aggregation network."""

from functools import partial

import torch
from torch import nn

from ..._utils.checks import check_int
from ..._utils.construct import LayerArgument
from ...layers.conv import ConvNormAct
from ._levels import Levels, check_levels, level_names, resize, with_names

__all__ = ["PathAggregation"]


class PathAggregation(nn.Module):
    r"""Adds fine maps of a pyramid to coarser ones: :math:`y_0 = x_0`, :math:`y_{i+1} = f_i(x_{i+1} + d_i(y_i))`.

    The bottom-up path of `Path Aggregation Network <https://arxiv.org/abs/1803.01534>`_ (section 3.1, figure 2), which
    follows a :class:`FeaturePyramid`: :math:`d_i` is a 3×3 convolution with stride 2, :math:`f_i` a 3×3 convolution,
    each with an activation. If level :math:`i+1` does not have the size that :math:`d_i` gives, its pixels are repeated
    or left out.

    Args:
        channels: channels of each level.
        levels: number of levels.
        norm_layer: called with ``channels``. Default: ``None``, no normalization; the convolutions have a bias.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. Errors: ``TypeError`` for an argument or
    input of the wrong type; ``ValueError`` for a number out of range, an instance with the wrong number of channels, or
    an input with another number of levels, dimensions or channels.

    Shape: input a list, tuple or ``OrderedDict`` of levels :math:`(N, C, H_i, W_i)`, the finest first; output a list,
    or an ``OrderedDict`` with the names of the input, of the same shapes.

    Examples::

        >>> levels = [torch.rand(2, 8, 25, 25), torch.rand(2, 8, 13, 13), torch.rand(2, 8, 7, 7)]
        >>> [list(level.shape) for level in enn.PathAggregation(8, 3)(levels)]
        [[2, 8, 25, 25], [2, 8, 13, 13], [2, 8, 7, 7]]
    """

    #: Each output has the size of its input.
    reduction = 1

    def __init__(
        self,
        channels: int,
        levels: int,
        *,
        norm_layer: LayerArgument | None = None,
        activation_layer: LayerArgument | None = nn.ReLU,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = check_int("channels", channels)
        self.in_channels = [channels] * check_int("levels", levels)
        conv = partial(
            ConvNormAct,
            channels,
            channels,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            device=device,
            dtype=dtype,
        )
        self.down = nn.ModuleList([conv(stride=2) for _ in range(levels - 1)])
        self.fuse = nn.ModuleList([conv(stride=1) for _ in range(levels - 1)])

    def forward(self, input: Levels) -> Levels:
        levels = check_levels(input, self.in_channels)
        outputs = levels[:1]
        for i, (down, fuse) in enumerate(zip(self.down, self.fuse)):  # noqa: B905  # TorchScript has no strict=
            outputs.append(fuse(levels[i + 1] + resize(down(outputs[i]), levels[i + 1])))
        return with_names(input, level_names(input), outputs)
