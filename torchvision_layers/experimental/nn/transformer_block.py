"""Transformer encoder block."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.checks import check_bool, check_dtype, check_int, check_number, check_probability, check_same_shape
from ..._utils.construct import Builder, LayerArgument
from ...layers.layer_norm import LayerScale
from ...layers.mlp import MLP
from ...layers.stochastic_depth import StochasticDepth
from ._tokens import build_token_norm, check_tokens
from .attention import MultiHeadSelfAttention

__all__ = ["TransformerEncoderBlock"]


class TransformerEncoderBlock(nn.Module):
    r"""Self-attention and an MLP, each normalized before and added to its input.

    .. math::
        z' = z + \gamma_1 \mathrm{MSA}(\mathrm{LN}(z)), \qquad y = z' + \gamma_2 \mathrm{MLP}(\mathrm{LN}(z'))

    From `An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>`_ (eq. 2 and 3), with the layer scale
    :math:`\gamma` of `CaiT <https://arxiv.org/abs/2103.17239>`_ (eq. 4) as an option. Called like the ``EncoderBlock``
    of torchvision's vision transformer, whose checkpoints load and give the same values bit for bit.

    Args:
        num_heads: number of attention heads; divides ``hidden_dim``.
        hidden_dim: channels of a token.
        mlp_dim: features of the hidden layer of the MLP.
        dropout: probability of zeroing a value of the attention's output or in the MLP, in [0, 1]. Default: ``0.0``.
        attention_dropout: probability of zeroing an attention weight, in [0, 1]. Default: ``0.0``.
        norm_layer: normalizes each token, called with ``hidden_dim``. Default: ``None``, ``nn.LayerNorm`` with
            ``eps=1e-6`` as in torchvision.
        attention_layer: called with ``hidden_dim``, ``num_heads`` and, if above 0, ``dropout=attention_dropout``.
            Default: :class:`MultiHeadSelfAttention`.
        mlp_layer: called like :class:`~torchvision_layers.nn.MLP`, with ``hidden_dim``, ``[mlp_dim, hidden_dim]`` and,
            if above 0, ``dropout``; :class:`GatedMLP` is another choice. Default: ``None``, an ``MLP`` with GELU.
        layer_scale: initial value of the learned scale of each channel of both branches; ``None`` for no scale.
            Default: ``None``.
        stochastic_depth: probability of dropping a branch of a sample in training. Default: ``0.0``.
        kept_rows_only: whether training computes a branch only for the samples that keep it, which saves time; not with
            a mask. See :meth:`StochasticDepth.run_branch`. Default: ``False``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    The call takes an optional ``attn_mask``, which the attention layer receives. A layer argument is a constructor, or
    a module that is copied. Errors: ``TypeError`` for an argument of the wrong type, a norm over another dimension than
    the last, or an input of another dtype than the norm's; ``ValueError`` for a number out of range, ``num_heads`` that
    do not divide ``hidden_dim``, an input with another number of dimensions or channels, or a branch whose output has
    another shape than its input.

    Shape: input and output are both :math:`(N, L, C)`, where :math:`C` is ``hidden_dim``.

    Examples::

        >>> enn.TransformerEncoderBlock(4, 64, 256)(torch.rand(2, 50, 64)).shape
        torch.Size([2, 50, 64])
        >>> block = enn.TransformerEncoderBlock(4, 64, 128, norm_layer=nn.RMSNorm, mlp_layer=enn.GatedMLP)
    """

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm_layer: LayerArgument | None = None,
        *,
        attention_layer: LayerArgument = MultiHeadSelfAttention,
        mlp_layer: LayerArgument | None = None,
        layer_scale: float | None = None,
        stochastic_depth: float = 0.0,
        kept_rows_only: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = check_int("num_heads", num_heads)
        self.hidden_dim = check_int("hidden_dim", hidden_dim)
        check_int("mlp_dim", mlp_dim)
        if hidden_dim % num_heads != 0:
            raise ValueError(f"hidden_dim must be divisible by num_heads, got {hidden_dim} and {num_heads}")
        check_probability("dropout", dropout)
        check_probability("attention_dropout", attention_dropout)
        check_probability("stochastic_depth", stochastic_depth)
        check_bool("kept_rows_only", kept_rows_only)
        self.out_channels, self.reduction = hidden_dim, 1
        build = Builder(device, dtype)
        norm_layer = partial(nn.LayerNorm, eps=1e-6) if norm_layer is None else norm_layer
        self.ln_1 = build_token_norm(build, "norm_layer", norm_layer, hidden_dim)
        self.self_attention = build.module(
            "attention_layer", attention_layer, hidden_dim, num_heads, **_above_zero(attention_dropout)
        )
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = build_token_norm(build, "norm_layer", norm_layer, hidden_dim)
        mlp_layer = _default_mlp if mlp_layer is None else mlp_layer
        self.mlp = build.module("mlp_layer", mlp_layer, hidden_dim, [mlp_dim, hidden_dim], **_above_zero(dropout))
        self.layer_scale_1 = self._build_scale(layer_scale, device, dtype)
        self.layer_scale_2 = self._build_scale(layer_scale, device, dtype)
        self.stochastic_depth = (
            StochasticDepth(stochastic_depth, "row", kept_rows_only=kept_rows_only) if stochastic_depth > 0 else None
        )

    def _build_scale(
        self, value: float | None, device: torch.device | str | int | None, dtype: torch.dtype | None
    ) -> LayerScale | None:
        if value is None:
            return None
        return LayerScale(self.hidden_dim, check_number("layer_scale", value), -1, device=device, dtype=dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Also loads checkpoints of torchvision before 0.12, where the linear layers had names."""
        for old, new in (("linear_1", "0"), ("linear_2", "3")):
            for key in ("weight", "bias"):
                if f"{prefix}mlp.{old}.{key}" in state_dict:
                    state_dict[f"{prefix}mlp.{new}.{key}"] = state_dict.pop(f"{prefix}mlp.{old}.{key}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, input: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        check_tokens(input, self.hidden_dim)
        if not torch.jit.is_scripting():
            weight = getattr(self.ln_1, "weight", None)
            check_dtype(input, weight if isinstance(weight, Tensor) else None)  # torch's own error names no dtype
        if not torch.jit.is_scripting():  # TorchScript cannot pass methods
            drop = self.stochastic_depth
            if isinstance(drop, StochasticDepth) and drop.kept_rows_only and attn_mask is None:
                layers = [self.ln_1, self.self_attention]
                middle = self._add_skip(drop.run_branch(self._attend, input, layers), input)
                return self._add_skip(drop.run_branch(self._transform, middle, [self.ln_2, self.mlp]), middle)
        branch = self._attend(input, attn_mask)
        if self.stochastic_depth is not None:
            branch = self.stochastic_depth(branch)
        middle = self._add_skip(branch, input)
        branch = self._transform(middle)
        if self.stochastic_depth is not None:
            branch = self.stochastic_depth(branch)
        return self._add_skip(branch, middle)

    def _attend(self, input: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """The first branch."""
        tokens = self.ln_1(input)
        branch = self.self_attention(tokens) if attn_mask is None else self.self_attention(tokens, attn_mask)
        branch = self.dropout(branch)
        check_same_shape("the output of attention_layer", branch, input, "the input")
        if self.layer_scale_1 is not None:
            branch = self.layer_scale_1(branch)
        return branch

    def _transform(self, input: Tensor) -> Tensor:
        """The second branch."""
        branch = self.mlp(self.ln_2(input))
        check_same_shape("the output of mlp_layer", branch, input, "the input")
        if self.layer_scale_2 is not None:
            branch = self.layer_scale_2(branch)
        return branch

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        return branch + skip


def _above_zero(dropout: float) -> dict[str, float]:
    """The argument ``dropout``, which a layer without dropout need not have."""
    return {"dropout": dropout} if dropout > 0 else {}


def _default_mlp(in_channels: int, hidden_channels: list[int], dropout: float = 0.0) -> MLP:
    """The MLP of torchvision's block, with its initial values."""
    mlp = MLP(in_channels, hidden_channels, activation_layer=nn.GELU, dropout=dropout)
    for module in mlp:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.normal_(module.bias, std=1e-6)
    return mlp
