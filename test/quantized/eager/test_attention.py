"""Attention: linear layers in int8, products in float, compared with torch in float."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.quantized.eager.attention import FloatAttention
from torchvision_layers.testing._checks._quantization import decibels

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(4, 6, 8, generator=GENERATOR)


def masks(length: int, keys: int) -> list[dict[str, Tensor]]:
    attn = torch.rand(length, keys, generator=GENERATOR) > 0.8
    attn[:, 0] = False
    padding = torch.zeros(4, keys, dtype=torch.bool)
    padding[:, -2:] = True
    return [
        {},
        {"attn_mask": attn},
        {"attn_mask": torch.randn(4 * 2, length, keys, generator=GENERATOR)},
        {"key_padding_mask": padding},
        {"attn_mask": attn, "key_padding_mask": padding},
    ]


OPTIONS: list[dict[str, object]] = [
    {},
    {"bias": False},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 5, "vdim": 7},
    {"dropout": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_equals_that_of_torch(options: dict[str, object], batch_first: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options).eval()  # type: ignore[arg-type]
    for parameter in attention.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    key, value = (torch.randn(4, 6, width, generator=GENERATOR) for width in (attention.kdim, attention.vdim))
    inputs = (X, key, value) if "kdim" in options else (X, X, X)
    cases = [
        (tuple(t if batch_first else t.transpose(0, 1) for t in inputs), mask, weights, average)
        for mask, weights, average in itertools.product(masks(6, 6), (True, False), (True, False))
    ]
    unbatched = tuple(t[0] for t in inputs)
    cases.append((unbatched, {"key_padding_mask": masks(6, 6)[3]["key_padding_mask"][0]}, True, True))
    expected = [attention(*i, **mask, need_weights=w, average_attn_weights=a) for i, mask, w, a in cases]
    FloatAttention.become(attention)
    for (i, mask, w, a), (output, weights) in zip(cases, expected, strict=True):
        actual, actual_weights = attention(*i, **mask, need_weights=w, average_attn_weights=a)
        torch.testing.assert_close(actual, output)
        assert (actual_weights is None) == (weights is None)
        if weights is not None:
            torch.testing.assert_close(actual_weights, weights)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.init.uniform_(self.attention.in_proj_bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.attention(x, x, x, need_weights=False)
        return x + output


class CrossAttention(SelfAttention):
    def forward(self, x: Tensor) -> Tensor:
        output, weights = self.attention(x, y := x.flip(1)[:, 1:], y * 2)
        return output + weights.sum(-1, keepdim=True)


class HandWritten(nn.Module):
    """As in timm: one linear layer for query, key and value; an optional mask."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.fused = 2, True
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            n, length, width = x.shape
            qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
            if self.fused:
                x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
            else:
                scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
                x = (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v
            return self.proj(x.transpose(1, 2).reshape(n, length, width))

    def __init__(self, fused: bool = True, masked: bool = False) -> None:
        super().__init__()
        self.attn, self.norm, self.masked = self.Attention(), nn.LayerNorm(8), masked
        self.attn.fused = fused
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x), attn_mask=torch.eye(x.shape[1]) if self.masked else None)
        return x + self.mlp(self.norm(x))


MODELS = {
    "self-attention": SelfAttention,
    "cross-attention": CrossAttention,
    "fused": HandWritten,
    "by hand": lambda: HandWritten(False),
    "masked": lambda: HandWritten(masked=True),
    "encoder layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", MODELS)
def test_linear_layers_of_attention_are_int8(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), MODELS[name]()).eval()
    keys = list(model.state_dict())
    int8 = quantized.quantize(model, [X], backend="x86")
    assert decibels(model(X), int8(X)) >= 28
    assert decibels(model(X[:1, :5]), int8(X[:1, :5])) >= 25
    rows = [row for row in quantized.report(int8).rows if "Linear" in row.before]
    assert rows
    assert {row.runs_in for row in rows} == {"int8"}
    assert list(quantized.quantizable(model).state_dict()) == keys
    prepared = quantized.prepare_qat(model, X)
    prepared(X).sum().backward()
    assert decibels(prepared.eval()(X).detach(), quantized.convert(prepared)(X)) >= 28
