"""Self-attention over tokens."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._utils.checks import check_bool, check_int, check_probability, is_tensor
from ..._utils.construct import Builder, LayerArgument
from ._native_attention import is_native_attention_usable, native_attention
from ._tokens import build_token_norm, check_tokens

__all__ = ["MultiHeadSelfAttention"]


class MultiHeadSelfAttention(nn.Module):
    r"""Attention of each token to all tokens, in several heads: :math:`\mathrm{softmax}(Q K^T / \sqrt{d}) V`.

    From `Attention Is All You Need <https://arxiv.org/abs/1706.03762>`_ (eq. 1 and section 3.2.2). Loads checkpoints of
    ``nn.MultiheadAttention``, and returns the same values bit for bit: in inference by the kernel of
    ``nn.MultiheadAttention``, unless ``torch.backends.mha.set_fastpath_enabled(False)``, and otherwise by
    ``scaled_dot_product_attention``, whose memory is linear in the number of tokens.

    Args:
        embed_dim: channels of a token.
        num_heads: number of heads; divides ``embed_dim``.
        dropout: probability of zeroing an attention weight in training, in [0, 1]. Default: ``0.0``.
        bias: whether queries, keys and values have a learned bias. Default: ``True``.
        out_bias: whether the output has a learned bias. Default: ``True``.
        qk_norm_layer: normalizes each query and key, called with the channels of a head, as in `Scaling Vision
            Transformers to 22 Billion Parameters <https://arxiv.org/abs/2302.05442>`_ (section 2); ``None`` for none.
            Default: ``None``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    The call takes an optional ``attn_mask``, as ``scaled_dot_product_attention`` and timm's layers do: booleans,
    ``True`` where a query sees a key, or numbers added to the attention scores. Its shape broadcasts to
    :math:`(N, heads, L, L)`. The ``attn_mask`` of ``nn.MultiheadAttention`` has the opposite booleans.

    Errors: ``TypeError`` for an argument of the wrong type, a norm over another dimension than the last, or a mask of
    integers; ``ValueError`` for a number out of range, ``num_heads`` that do not divide ``embed_dim``, an input with
    another number of dimensions or channels, or a mask of another shape.

    Shape: input and output are both :math:`(N, L, E)`, where :math:`E` is ``embed_dim``.

    Examples::

        >>> enn.MultiHeadSelfAttention(64, 4)(torch.rand(2, 50, 64)).shape
        torch.Size([2, 50, 64])
        >>> causal = torch.ones(50, 50, dtype=torch.bool).tril()
        >>> enn.MultiHeadSelfAttention(64, 4, qk_norm_layer=nn.RMSNorm)(torch.rand(2, 50, 64), causal).shape
        torch.Size([2, 50, 64])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        out_bias: bool = True,
        qk_norm_layer: LayerArgument | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = check_int("embed_dim", embed_dim)
        self.num_heads = check_int("num_heads", num_heads)
        if embed_dim % num_heads != 0:
            raise ValueError(f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}")
        self.dropout = check_probability("dropout", dropout)
        check_bool("bias", bias)
        check_bool("out_bias", out_bias)
        self.out_channels, self.reduction = embed_dim, 1
        self.head_dim = embed_dim // num_heads
        build = Builder(device, dtype)
        # Without default values, so that the same seed gives the weights of nn.MultiheadAttention.
        self.in_proj = nn.utils.skip_init(
            nn.Linear,
            embed_dim,
            3 * embed_dim,
            bias,
            device=torch.get_default_device() if device is None else device,
            dtype=dtype,
        )
        self.q_norm = build_token_norm(build, "qk_norm_layer", qk_norm_layer, self.head_dim)
        self.k_norm = build_token_norm(build, "qk_norm_layer", qk_norm_layer, self.head_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim, out_bias, device=device, dtype=dtype)
        nn.init.xavier_uniform_(self.in_proj.weight)
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, input: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        check_tokens(input, self.embed_dim)
        if attn_mask is not None:
            self._check_mask(input, attn_mask)
        if not torch.jit.is_scripting():  # noqa: SIM102  # TorchScript would compile a condition joined by "and"
            if attn_mask is None and self._runs_native_kernel(input):
                return native_attention(input, self.num_heads, self.in_proj, self.out_proj)
        # Tokens first, as in nn.MultiheadAttention, because the order of rows changes the rounding of products.
        projected = self.in_proj(input.transpose(0, 1)).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = projected.permute(2, 1, 3, 0, 4).unbind(0)
        query, key = self.q_norm(query), self.k_norm(key)
        dropout = self.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout)
        return self.out_proj(output.permute(2, 0, 1, 3).flatten(2)).transpose(0, 1)

    def _runs_native_kernel(self, input: Tensor) -> bool:
        is_plain = not self.training and isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity)
        return is_plain and is_native_attention_usable(input, self.num_heads, self.in_proj, self.out_proj)

    def _check_mask(self, input: Tensor, attn_mask: Tensor) -> None:
        """Raises unless the mask holds booleans or numbers and broadcasts to (N, heads, L, L)."""
        if not is_tensor(input) or not is_tensor(attn_mask, "attn_mask"):
            return
        is_float = attn_mask.is_floating_point()
        if not torch.jit.is_scripting():
            is_cast = torch.is_autocast_enabled(input.device.type)
            is_float = is_float and (is_cast or attn_mask.dtype == input.dtype)
        if attn_mask.dtype != torch.bool and not is_float:
            raise TypeError(f"attn_mask must be boolean or {input.dtype}, the dtype of input, got {attn_mask.dtype}")
        full = [input.shape[0], self.num_heads, input.shape[1], input.shape[1]]
        sizes = list(attn_mask.shape)
        fits = 2 <= len(sizes) <= 4
        for i in range(len(sizes)):
            fits = fits and sizes[-1 - i] in (1, full[-1 - i])
        if not fits:
            raise ValueError(f"attn_mask must have a shape that broadcasts to {full}, got {sizes}")

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}" + (f", dropout={self.dropout}" if self.dropout else "")

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for key in ("weight", "bias"):  # nn.MultiheadAttention has parameters where this layer has a linear layer
            if f"{prefix}in_proj_{key}" in state_dict:
                state_dict[f"{prefix}in_proj.{key}"] = state_dict.pop(f"{prefix}in_proj_{key}")
        super()._load_from_state_dict(state_dict, prefix, *args)
