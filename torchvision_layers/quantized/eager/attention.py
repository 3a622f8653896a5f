"""``nn.MultiheadAttention`` with linear layers as modules, which become int8, and products in float."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FloatAttention"]


class FloatAttention(nn.MultiheadAttention):
    """Computes what ``nn.MultiheadAttention`` computes, with its projections as children."""

    runs_in_float = True
    in_proj: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    @classmethod
    def become(cls, attention: nn.MultiheadAttention) -> None:
        """Turns an attention into one of this class, in place."""
        width = attention.embed_dim
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        if attention._qkv_same_embed_dim:
            projections = {"in_proj": _linear(attention.in_proj_weight, attention.in_proj_bias)}
        else:
            biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.split(width)
            projections = {
                f"{name}_proj": _linear(weight, bias) for name, weight, bias in zip("qkv", weights, biases, strict=True)
            }
        out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_weight", "in_proj_bias"):
            attention._parameters[name] = None
        attention.__class__ = cls
        for name, linear in {**projections, "out_proj": out_proj}.items():
            attention.add_module(name, linear.train(attention.training))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise RuntimeError("attn_mask must be given if is_causal is set")
        is_batched = query.dim() == 3
        q, k, v = (self._split_heads(t, is_batched) for t in self._project(query, key, value))
        mask = _merge_masks(attn_mask, key_padding_mask, q, k.shape[2])
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([t, self._heads(b.expand(len(t), 1, -1))], 2) for t, b in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        if mask is not None:
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            output = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if is_batched else weights.squeeze(0)
        else:
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        output = self.out_proj(output.transpose(1, 2).flatten(2))
        if not is_batched:
            return output.squeeze(0), weights
        return output if self.batch_first else output.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, projected. The int8 layer computes all three at once."""
        if not self._qkv_same_embed_dim:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        width = self.embed_dim
        if query is key and key is value:
            q, k, v = self.in_proj(query).split(width, -1)
            return q, k, v
        if key is value:
            return self.in_proj(query)[..., :width], *self.in_proj(key)[..., width:].split(width, -1)
        q, k, v = (self.in_proj(t).split(width, -1)[i] for i, t in enumerate((query, key, value)))
        return q, k, v

    def _split_heads(self, tensor: Tensor, is_batched: bool) -> Tensor:
        """From (N, L, E) in the layout of the inputs to (N, heads, L, E / heads)."""
        if not is_batched:
            tensor = tensor.unsqueeze(0)
        elif not self.batch_first:
            tensor = tensor.transpose(0, 1)
        return self._heads(tensor)

    def _heads(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _linear(weight: Tensor | None, bias: Tensor | None) -> nn.Linear:
    """A linear layer with this weight and bias."""
    assert weight is not None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), bias.requires_grad)
    return linear


def _merge_masks(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
    """The sum of both masks for scores of shape (N, heads, L, S)."""
    n, heads, length, _ = q.shape
    mask = None
    if attn_mask is not None:
        mask = _additive(attn_mask, q)
        mask = mask if mask.dim() == 2 else mask.reshape(n, heads, length, keys)
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, q).reshape(n, 1, 1, keys)
        mask = padding if mask is None else mask + padding
    return mask


def _additive(mask: Tensor, q: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask
