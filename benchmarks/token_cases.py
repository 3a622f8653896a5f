"""Cases of the layers of vision transformers, beside torch's, torchvision's and timm's forms."""

import importlib
from collections.abc import Mapping, Sequence

from cases import Candidate, Candidates, Case, Formula, Target, timm_layers, with_weights_of
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import EncoderBlock

from torchvision_layers.experimental import nn as enn

__all__ = ["TOKEN_CASES"]

# Parts of the keys of our layers, and what torch and timm have there.
_IN_TORCH = {"in_proj.": "in_proj_"}
_IN_TIMM = {"in_proj": "qkv", "out_proj": "proj", "self_attention": "attn", "ln_": "norm"}
_IN_TIMM |= {"mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"}


class SelfAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` of the input to itself, called as blocks do."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input, input, input, need_weights=False)[0]


def with_renamed_weights_of(layer: nn.Module, module: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """``module`` with the weights of ``layer``, after replacing parts of their keys."""
    state = {}
    for key, value in layer.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key] = value
    module.load_state_dict(state)
    return module


def attention(layer: type[enn.MultiHeadSelfAttention], shape: Sequence[int], *, heads: int) -> Candidates:
    channels = shape[-1]
    ours = layer(channels, heads)

    def plain(input: Tensor) -> Tensor:
        projected = F.linear(input, ours.in_proj.weight, ours.in_proj.bias)
        query, key, value = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        output = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return F.linear(output, ours.out_proj.weight, ours.out_proj.bias)

    candidates = {"two F.linear": Candidate(Formula(plain, ours)), "ours": Candidate(ours)}
    peer = SelfAttention(channels, heads, batch_first=True)
    candidates["nn.MultiheadAttention"] = Candidate(with_renamed_weights_of(ours, peer, _IN_TORCH))
    if timm := timm_layers():
        peer = timm.Attention(channels, heads, qkv_bias=True)
        candidates["timm"] = Candidate(with_renamed_weights_of(ours, peer, _IN_TIMM))
    return candidates


def block(layer: type[enn.TransformerEncoderBlock], shape: Sequence[int], *, heads: int) -> Candidates:
    channels = shape[-1]
    ours = layer(heads, channels, 4 * channels)
    peer = EncoderBlock(heads, channels, 4 * channels, 0.0, 0.0)
    candidates = {
        "torchvision": Candidate(with_renamed_weights_of(ours, peer, _IN_TORCH)),
        "ours": Candidate(ours),
    }
    if timm_layers():
        peer = importlib.import_module("timm.models.vision_transformer").Block(channels, heads, qkv_bias=True)
        for norm in (peer.norm1, peer.norm2):
            norm.eps = ours.ln_1.eps
        candidates["timm"] = Candidate(with_renamed_weights_of(ours, peer, _IN_TIMM))
    return candidates


def patches(layer: type[enn.PatchEmbedding], shape: Sequence[int]) -> Candidates:
    ours = layer(3, 384, 16)
    conv = nn.Conv2d(3, 384, 16, 16)
    conv.load_state_dict(ours.proj.state_dict())
    candidates = {
        "nn.Conv2d": Candidate(Formula(lambda x: conv(x).flatten(2).transpose(1, 2), conv)),
        "ours": Candidate(ours),
    }
    if timm := timm_layers():
        candidates["timm"] = Candidate(with_weights_of(ours, timm.PatchEmbed(shape[-1], 16, 3, 384)))
    return candidates


def gated_mlp(layer: type[enn.GatedMLP], shape: Sequence[int]) -> Candidates:
    channels = shape[-1]
    hidden = 8 * channels // 3
    ours = layer(channels, [hidden, channels])

    def two_linear(input: Tensor) -> Tensor:
        gate, value = F.linear(input, ours.fc1.weight, ours.fc1.bias).chunk(2, -1)
        return F.linear(F.silu(gate) * value, ours.fc2.weight, ours.fc2.bias)

    candidates = {"two F.linear": Candidate(Formula(two_linear, ours)), "ours": Candidate(ours)}
    if timm := timm_layers():
        candidates["timm"] = Candidate(with_weights_of(ours, timm.SwiGLUPacked(channels, 2 * hidden)))
    return candidates


def head(layer: type[enn.ClassifierHead], shape: Sequence[int]) -> Candidates:
    ours = layer(shape[1], 1000)
    plain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(shape[1], 1000))
    plain[2].load_state_dict(ours.fc.state_dict())
    candidates = {"nn.Sequential": Candidate(plain), "ours": Candidate(ours)}
    if timm := timm_layers():
        candidates["timm"] = Candidate(with_weights_of(ours, timm.ClassifierHead(shape[1], 1000)))
    return candidates


TOKEN_CASES = [
    Case(enn.PatchEmbedding, (8, 3, 224, 224), patches, Target(1.02, 1.02)),
    Case(enn.MultiHeadSelfAttention, (8, 197, 192), attention, Target(1.02, 1.02), {"heads": 3}),
    Case(enn.MultiHeadSelfAttention, (2, 197, 768), attention, Target(1.02, 1.02), {"heads": 12}),
    Case(enn.TransformerEncoderBlock, (8, 197, 192), block, Target(1.02, 1.02), {"heads": 3}),
    Case(enn.TransformerEncoderBlock, (2, 197, 768), block, Target(1.02, 1.02), {"heads": 12}),
    Case(enn.GatedMLP, (8, 197, 192), gated_mlp, Target(1.02, 1.02)),
    Case(enn.ClassifierHead, (8, 512, 7, 7), head, Target(1.02, 1.02)),
]
