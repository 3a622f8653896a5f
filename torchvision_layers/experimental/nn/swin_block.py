"""The block of Swin Transformers."""

import torch
from torch import Tensor, nn

from ..._utils.checks import (
    check_bool,
    check_dtype,
    check_input,
    check_int,
    check_number,
    check_probability,
    check_same_shape,
)
from ..._utils.construct import Builder, LayerArgument
from ...layers.mlp import MLP
from ...layers.stochastic_depth import StochasticDepth
from ._version import check_version
from .window_attention import WindowAttention

__all__ = ["SwinBlock"]


class SwinBlock(nn.Module):
    r"""Attention in windows and a multi-layer perceptron, each added to its input:
    :math:`z = x + A(n(x)),\ y = z + M(n(z))`.

    From `Swin Transformer <https://arxiv.org/abs/2103.14030>`_ (eq. 3): every other block of a stage has
    ``shift_size = window_size // 2``. `Version 2 <https://arxiv.org/abs/2111.09883>`_ (figure 1) has cosine attention
    and normalizes what is added instead: :math:`z = x + n(A(x)),\ y = z + n(M(z))`.

    Loads checkpoints of torchvision's ``SwinTransformerBlock`` and ``SwinTransformerBlockV2``, with bit-equal outputs,
    but channels are in dimension 1: ``channels_last`` images are used as they are.

    Args:
        dim: channels of input and output; divisible by ``num_heads``.
        num_heads: number of heads.
        window_size: size of the window, an int or (height, width).
        shift_size: shift of the windows, an int or (height, width), below ``window_size``. Default: ``0``.
        mlp_ratio: hidden features of the multi-layer perceptron in multiples of ``dim``. Default: ``4.0``.
        dropout: probability of zeroing a value after each linear layer except the first, in [0, 1]. Default: ``0.0``.
        attention_dropout: probability of zeroing an attention weight, in [0, 1]. Default: ``0.0``.
        stochastic_depth: probability of dropping each of the two branches for a sample, in [0, 1]. Default: ``0.0``.
        kept_rows_only: whether training computes a branch only for the samples that keep it, which saves time; an
            error if the branch has batch statistics. See :meth:`StochasticDepth.run_branch`. Default: ``False``.
        norm_layer: called with ``dim``; normalizes the last dimension. Default: ``nn.LayerNorm``.
        activation_layer: called with nothing; ``None`` for none. Default: ``nn.GELU``.
        version: ``1`` or ``2``. Default: ``1``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. The attributes ``out_channels`` and
    ``reduction`` are ``dim`` and 1. Errors: ``TypeError`` for an argument of the wrong type; ``ValueError`` for a
    number out of range, an instance with the wrong number of channels, or an input with another number of dimensions
    or channels, or without pixels.

    Shape: input and output are both :math:`(N, C, H, W)`, :math:`C` being ``dim``.

    Examples::

        >>> blocks = [enn.SwinBlock(32, num_heads=4, window_size=7, shift_size=shift) for shift in (0, 3)]
        >>> nn.Sequential(*blocks)(torch.rand(2, 32, 20, 15)).shape
        torch.Size([2, 32, 20, 15])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int],
        shift_size: int | tuple[int, int] = 0,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        kept_rows_only: bool = False,
        norm_layer: LayerArgument = nn.LayerNorm,
        activation_layer: LayerArgument | None = nn.GELU,
        version: int = 1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = self.out_channels = check_int("dim", dim)
        self.reduction = 1
        hidden = int(dim * check_number("mlp_ratio", mlp_ratio))
        if hidden < 1:
            raise ValueError(f"mlp_ratio must give at least one hidden feature for dim={dim}, got {mlp_ratio}")
        check_probability("stochastic_depth", stochastic_depth)
        self.version = check_version(version)
        build = Builder(device, dtype)
        self.norm1 = build.norm_of_last("norm_layer", norm_layer, dim)
        self.attn = WindowAttention(
            dim,
            num_heads,
            window_size,
            shift_size,
            attention_dropout=attention_dropout,
            dropout=dropout,
            version=version,
            device=device,
            dtype=dtype,
        )
        self.norm2 = build.norm_of_last("norm_layer", norm_layer, dim)
        self.mlp = MLP(
            dim, [hidden, dim], activation_layer=activation_layer, dropout=dropout, device=device, dtype=dtype
        )
        if dropout == 0:  # which would still draw random numbers in TorchScript
            self.mlp[2], self.mlp[4] = nn.Identity(), nn.Identity()
        for linear in (module for module in self.mlp if isinstance(module, nn.Linear)):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)
        check_bool("kept_rows_only", kept_rows_only)
        drops: list[nn.Module] = [nn.Identity(), nn.Identity()]
        if stochastic_depth > 0:
            drops = [StochasticDepth(stochastic_depth, "row", kept_rows_only=kept_rows_only) for _ in drops]
        self.stochastic_depth1, self.stochastic_depth2 = drops

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.dim, needs_pixels=True)
        check_dtype(input, self.attn.proj.weight)
        x = input.permute(0, 2, 3, 1)
        if not torch.jit.is_scripting():  # TorchScript cannot pass methods
            drop1, drop2 = self.stochastic_depth1, self.stochastic_depth2
            if isinstance(drop1, StochasticDepth) and isinstance(drop2, StochasticDepth) and drop1.kept_rows_only:
                x = self._add(x, drop1.run_branch(self._attend, x, [self.norm1, self.attn]))
                x = self._add(x, drop2.run_branch(self._mix, x, [self.norm2, self.mlp]))
                return x.permute(0, 3, 1, 2)
        x = self._add(x, self.stochastic_depth1(self._attend(x)))
        x = self._add(x, self.stochastic_depth2(self._mix(x)))
        return x.permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        if self.version == 1:
            return self.attn(self.norm1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm1(self.attn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def _mix(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x)) if self.version == 1 else self.norm2(self.mlp(x))

    def _add(self, skip: Tensor, branch: Tensor) -> Tensor:
        check_same_shape("norm_layer", branch, skip, "the input")
        return skip + branch
