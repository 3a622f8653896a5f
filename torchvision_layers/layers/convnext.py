"""ConvNeXt block."""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from .._utils.checks import (
    check_bool,
    check_input,
    check_int,
    check_number,
    check_odd,
    check_probability,
    check_same_shape,
)
from .._utils.construct import Builder, LayerArgument
from .._utils.scaling import scale_outputs
from .permute import Permute
from .stochastic_depth import StochasticDepth

__all__ = ["ConvNeXtBlock"]


class ConvNeXtBlock(nn.Module):
    r"""The ConvNeXt block: depthwise convolution, layer norm, MLP on each pixel, layer scale and skip connection.

    From `A ConvNet for the 2020s <https://arxiv.org/abs/2201.03545>`_ (figure 4). Loads checkpoints of torchvision's
    ``CNBlock``.

    Args:
        dim: channels of the input and of the output.
        kernel_size: size of the depthwise kernel, odd. Default: ``7``.
        expansion: the hidden layer of the MLP has ``expansion * dim`` channels. Default: ``4``.
        layer_scale: initial value of the learned scale of each channel of the branch; ``None`` for no scale. Default:
            ``1e-6``.
        stochastic_depth: probability of dropping the branch of a sample in training. Default: ``0.0``.
        kept_rows_only: whether training computes the branch only for the samples that keep it, which saves time; an
            error if the branch has batch statistics. See :meth:`StochasticDepth.run_branch`. Default: ``False``.
        norm_layer: called with ``dim``; its input is :math:`(N, H, W, C)`. Default: ``None``, ``nn.LayerNorm`` with
            ``eps=1e-6`` as in torchvision.
        activation_layer: activation of the MLP; ``None`` for none. Default: ``nn.GELU``.
        hidden_norm_layer: norm after this activation, called with ``expansion * dim``; its input is
            :math:`(N, H, W, C)`. `ConvNeXt V2 <https://arxiv.org/abs/2301.00808>`_ has
            :class:`GlobalResponseNorm`, and no layer scale. Default: ``None``.
        conv_layer: depthwise convolution, called like ``nn.Conv2d``. Default: ``nn.Conv2d``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied. An argument of the wrong type raises ``TypeError``; a
    number out of range, or an instance with the wrong number of channels, raises ``ValueError``.

    Shape: input and output are both :math:`(N, C, H, W)`, where :math:`C` is ``dim``.

    Examples::

        >>> tnn.ConvNeXtBlock(8)(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int = 7,
        expansion: int = 4,
        layer_scale: float | None = 1e-6,
        stochastic_depth: float = 0.0,
        kept_rows_only: bool = False,
        norm_layer: LayerArgument | None = None,
        activation_layer: LayerArgument | None = nn.GELU,
        hidden_norm_layer: LayerArgument | None = None,
        conv_layer: LayerArgument = nn.Conv2d,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_int("dim", dim)
        hidden = check_int("expansion", expansion) * dim
        check_odd("kernel_size", kernel_size)
        check_probability("stochastic_depth", stochastic_depth)
        if layer_scale is not None:
            check_number("layer_scale", layer_scale)
        check_bool("kept_rows_only", kept_rows_only)
        build = Builder(device, dtype)
        padding = kernel_size // 2
        norm_layer = partial(nn.LayerNorm, eps=1e-6) if norm_layer is None else norm_layer
        layers: list[nn.Module] = [
            build.conv(
                "conv_layer",
                conv_layer,
                dim,
                dim,
                kernel_size=(kernel_size, kernel_size),
                stride=(1, 1),
                padding=(padding, padding),
                dilation=(1, 1),
                groups=dim,
                bias=True,
            ),
            Permute([0, 2, 3, 1]),
            build.norm_of_last("norm_layer", norm_layer, dim),
            nn.Linear(dim, hidden, device=device, dtype=dtype),
            build.activation("activation_layer", activation_layer, hidden),
        ]
        if hidden_norm_layer is not None:
            layers.append(build.norm_of_last("hidden_norm_layer", hidden_norm_layer, hidden))
        layers.append(nn.Linear(hidden, dim, device=device, dtype=dtype))
        layers.append(Permute([0, 3, 1, 2]))
        self.block = nn.Sequential(*layers)
        self.layer_scale: nn.Parameter | None = None
        # Without the scale the branch is a view, into which TorchScript cannot write if it has gradients.
        self.adds_in_place = layer_scale is not None
        if layer_scale is not None:
            self.layer_scale = nn.Parameter(torch.full((dim, 1, 1), float(layer_scale), device=device, dtype=dtype))
        self.stochastic_depth = (
            StochasticDepth(stochastic_depth, "row", kept_rows_only=kept_rows_only) if stochastic_depth > 0 else None
        )
        self.out_channels = dim
        self.reduction = 1

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.dim)
        if not torch.jit.is_scripting():  # TorchScript cannot pass methods
            drop = self.stochastic_depth
            if isinstance(drop, StochasticDepth) and drop.kept_rows_only:
                return self._add_skip(drop.run_branch(self._branch, input, [self.block]), input)
        branch = self._branch(input)
        if self.stochastic_depth is not None:
            branch = self.stochastic_depth(branch)
        return self._add_skip(branch, input)

    def folded(self) -> nn.Module:
        """A copy with the layer scale multiplied into the last linear layer, if that is a plain ``nn.Linear``."""
        block = copy.deepcopy(self)
        linear = block.block[-2]
        if block.layer_scale is not None and type(linear) is nn.Linear and "forward" not in vars(linear):
            scale_outputs(linear, block.layer_scale.flatten())
            block.layer_scale = None
        return block

    def _branch(self, input: Tensor) -> Tensor:
        return self._scale(self.block(input))

    def _scale(self, branch: Tensor) -> Tensor:
        if self.layer_scale is None:  # TorchScript skips a branch of a statement, not of an expression
            return branch
        return self.layer_scale * branch

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        check_same_shape("the output of conv_layer", branch, skip, "the input")
        if not self.adds_in_place:
            return branch + skip
        branch += skip
        return branch
