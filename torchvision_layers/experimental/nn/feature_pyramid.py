"""Feature pyramid network."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.checks import check_int
from ..._utils.construct import Builder, LayerArgument
from ...layers.conv import ConvNormAct
from ._levels import Levels, check_levels, level_names, resize, with_names

__all__ = ["FeaturePyramid"]


class FeaturePyramid(nn.Module):
    r"""Adds coarse maps of a backbone to finer ones: :math:`y_i = f_i(z_i)`, :math:`z_i = l_i(x_i) + u(z_{i+1})`.

    From `Feature Pyramid Networks <https://arxiv.org/abs/1612.03144>`_ (section 3, figure 3): :math:`l_i` is a 1×1
    convolution, :math:`f_i` a 3×3 convolution, and :math:`u` repeats pixels up to the size of level :math:`i`, which
    need not be the double. Drop-in for ``torchvision.ops.FeaturePyramidNetwork``: call signatures and checkpoints work
    unchanged.

    Args:
        in_channels_list: channels of each level, from the finest to the coarsest.
        out_channels: channels of each output.
        extra_blocks: makes further levels, such as torchvision's ``LastLevelMaxPool``: called with the list of outputs,
            the list of inputs and their names, it returns the lists of all outputs and names. Default: ``None``.
        norm_layer: called with ``out_channels``. Default: ``None``, no normalization; the convolutions have a bias.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied. Errors: ``TypeError`` for an argument or input of the
    wrong type; ``ValueError`` for a number out of range, an instance with the wrong number of channels, or an input
    with another number of levels, dimensions or channels.

    Shape: input a list, tuple or ``OrderedDict`` of levels :math:`(N, C_i, H_i, W_i)`; output a list, or an
    ``OrderedDict`` with the names of the input, of levels :math:`(N, C_{out}, H_i, W_i)`. Levels of ``extra_blocks``
    follow.

    Examples::

        >>> levels = [torch.rand(2, 8, 25, 25), torch.rand(2, 16, 13, 13), torch.rand(2, 32, 7, 7)]
        >>> [list(level.shape) for level in enn.FeaturePyramid([8, 16, 32], 12)(levels)]
        [[2, 12, 25, 25], [2, 12, 13, 13], [2, 12, 7, 7]]
    """

    _version = 2

    #: Each output has the size of its input.
    reduction = 1

    def __init__(
        self,
        in_channels_list: Sequence[int],
        out_channels: int,
        extra_blocks: LayerArgument | None = None,
        norm_layer: LayerArgument | None = None,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(in_channels_list, str) or not isinstance(in_channels_list, Sequence) or not in_channels_list:
            raise ValueError(f"in_channels_list must be a non-empty sequence of ints, got {in_channels_list!r}")
        self.in_channels = [check_int("in_channels_list", channels) for channels in in_channels_list]
        self.out_channels = check_int("out_channels", out_channels)
        conv = partial(
            ConvNormAct,
            out_channels=out_channels,
            norm_layer=norm_layer,
            activation_layer=None,
            device=device,
            dtype=dtype,
        )
        self.inner_blocks = nn.ModuleList([conv(channels, kernel_size=1) for channels in self.in_channels])
        self.layer_blocks = nn.ModuleList([conv(out_channels, kernel_size=3) for _ in self.in_channels])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        build = Builder(device, dtype)
        self.extra_blocks = None if extra_blocks is None else build.module("extra_blocks", extra_blocks)

    def forward(self, input: Levels) -> Levels:
        levels = check_levels(input, self.in_channels)
        merged: list[Tensor] = []
        for i, inner in enumerate(self.inner_blocks):
            merged.append(inner(levels[i]))
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + resize(merged[i + 1], merged[i])
        outputs: list[Tensor] = []
        for i, layer in enumerate(self.layer_blocks):
            outputs.append(layer(merged[i]))
        names = level_names(input)
        if self.extra_blocks is not None:
            outputs, names = self.extra_blocks(outputs, levels, names)
        return with_names(input, names, outputs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Also loads checkpoints of torchvision before 0.13, where a convolution was no ``Sequential``."""
        if (local_metadata.get("version") or 1) < 2:
            for i, name, key in product(range(len(self.in_channels)), ("inner", "layer"), ("weight", "bias")):
                old = f"{prefix}{name}_blocks.{i}.{key}"
                if old in state_dict:
                    state_dict[f"{prefix}{name}_blocks.{i}.0.{key}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
